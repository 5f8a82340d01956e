/* Times as Docker and applications write them. */

#include "native.h"

/* Seconds since 1970 of a date and time, or -1 for none that is believed. */
static int64_t
seconds_of(int year, int month, int day, int hour, int minute, int second)
{
    static const int lengths[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (year < 1970 || month < 1 || month > 12 || day < 1 || day > lengths[month - 1] || hour < 0 || hour > 23 ||
        minute < 0 || minute > 59 || second < 0 || second > 59)
        return -1;
    int leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (month == 2 && day == 29 && !leap)
        return -1;
    /* Days since 1970 by counting from March, so that a leap day is the last of its year. */
    int64_t y = month > 2 ? year : year - 1, m = month > 2 ? month - 3 : month + 9;
    int64_t days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719468;
    int64_t seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    return seconds > 0 && seconds < END_OF_TIME ? seconds : -1;
}

/* Seconds since 1970 of YYYY-MM-DDTHH:MM:SS, or -1. */
static int64_t
iso_seconds(Clock *clock, const char *p)
{
    if (memcmp(clock->text, p, 19) == 0)
        return clock->seconds;
    if (p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':' || p[16] != ':')
        return -1;
    int64_t seconds = seconds_of(digits_of(p, 4), digits_of(p + 5, 2), digits_of(p + 8, 2), digits_of(p + 11, 2),
                                 digits_of(p + 14, 2), digits_of(p + 17, 2));
    if (seconds >= 0) {
        memcpy(clock->text, p, 19);
        clock->seconds = seconds;
    }
    return seconds;
}

/* Nanoseconds since 1970 of YYYY-MM-DDTHH:MM:SS[.f{1,9}]Z, or -1. */
int64_t
iso_nanoseconds(Clock *clock, const char *p, Py_ssize_t n)
{
    if (n < 20 || n > 30 || n == 21 || p[n - 1] != 'Z')
        return -1;
    int64_t fraction = 0;
    if (n > 20) {
        if (p[19] != '.')
            return -1;
        fraction = digits_of(p + 20, (int)n - 21);
        if (fraction < 0)
            return -1;
        for (Py_ssize_t i = n; i < 30; i++)
            fraction *= 10;
    }
    int64_t seconds = iso_seconds(clock, p);
    return seconds < 0 ? -1 : seconds * SECOND + fraction;
}

/* Seconds since 1970 of an access log's DD/Mon/YYYY:HH:MM:SS +ZZZZ (26 characters), or -1. */
int64_t
access_seconds(Clock *clock, const char *p)
{
    if (memcmp(clock->text, p, 26) == 0)
        return clock->seconds;
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    int month = 0;
    while (month < 12 && memcmp(months + 3 * month, p + 3, 3) != 0)
        month++;
    if (month == 12 || p[2] != '/' || p[6] != '/' || p[11] != ':' || p[14] != ':' || p[17] != ':' || p[20] != ' ' ||
        (p[21] != '+' && p[21] != '-'))
        return -1;
    int hours = digits_of(p + 22, 2), minutes = digits_of(p + 24, 2);
    int64_t seconds = seconds_of(digits_of(p + 7, 4), month + 1, digits_of(p, 2), digits_of(p + 12, 2),
                                 digits_of(p + 15, 2), digits_of(p + 18, 2));
    if (seconds < 0 || hours < 0 || minutes < 0)
        return -1;
    int64_t zone = (hours * 60 + minutes) * 60;
    seconds -= p[21] == '+' ? zone : -zone;
    if (seconds <= 0 || seconds >= END_OF_TIME)
        return -1;
    memcpy(clock->text, p, 26);
    clock->seconds = seconds;
    return seconds;
}
