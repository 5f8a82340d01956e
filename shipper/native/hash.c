/* XXH3 of 128 bits with a seed: the twin is `xxhash.xxh3_128_intdigest`, of which one call takes longer than the hash.
 *
 * After XXH3 of xxHash 0.8 by Yann Collet (BSD 2-Clause). Lines of fewer than 17 bytes have no hash here; a line of
 * Docker's has more. His own header would be better, but no package that is fit for a build brings it: the package xxhash
 * has it in its source distribution alone, and pyarrow, which installs a copy, is 55 MB. So tests/native/test_hash.py holds
 * this to that package, for every class of lengths. */

#include "native.h"

#define P32_1 0x9E3779B1U
#define P32_2 0x85EBCA77U
#define P32_3 0xC2B2AE3DU
#define P64_1 0x9E3779B185EBCA87ULL
#define P64_2 0xC2B2AE3D27D4EB4FULL
#define P64_3 0x165667B19E3779F9ULL
#define P64_4 0x85EBCA77C2B2AE63ULL
#define P64_5 0x27D4EB2F165667C5ULL

#define STRIPE 64
/* Stripes after which the lanes are scrambled: as often as the secret can be moved on by 8 bytes. */
#define STRIPES ((HASH_SECRET - STRIPE) / 8)
/* The least secret of the algorithm, to which places in it are counted for lines of 129 to 240 bytes. */
#define SECRET_LEAST 136

static const unsigned char default_secret[HASH_SECRET] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint64_t
fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t
avalanche(uint64_t h)
{
    h ^= h >> 37;
    h *= 0x165667919E3779F9ULL;
    return h ^ h >> 32;
}

static inline uint64_t
mix16(const char *p, const char *secret, uint64_t seed)
{
    return fold(load8(p) ^ (load8(secret) + seed), load8(p + 8) ^ (load8(secret + 8) - seed));
}

static inline void
mix32(Hash *h, const char *a, const char *b, const char *secret, uint64_t seed)
{
    h->low = (h->low + mix16(a, secret, seed)) ^ (load8(b) + load8(b + 8));
    h->high = (h->high + mix16(b, secret + 16, seed)) ^ (load8(a) + load8(a + 8));
}

static Hash
finish_short(Hash h, uint64_t n, uint64_t seed)
{
    Hash result = {
        avalanche(h.low + h.high),
        0 - avalanche(h.low * P64_1 + h.high * P64_4 + (n - seed) * P64_2),
    };
    return result;
}

static Hash
hash_17_to_128(const char *p, size_t n, uint64_t seed)
{
    const char *secret = (const char *)default_secret;
    Hash h = {n * P64_1, 0};
    for (size_t at = n > 96 ? 48 : n > 64 ? 32 : n > 32 ? 16 : 0;; at -= 16) {
        mix32(&h, p + at, p + n - at - 16, secret + 2 * at, seed);
        if (at == 0)
            return finish_short(h, n, seed);
    }
}

static Hash
hash_129_to_240(const char *p, size_t n, uint64_t seed)
{
    const char *secret = (const char *)default_secret;
    Hash h = {n * P64_1, 0};
    for (size_t at = 0; at < 128; at += 32)
        mix32(&h, p + at, p + at + 16, secret + at, seed);
    h.low = avalanche(h.low);
    h.high = avalanche(h.high);
    for (size_t at = 128; at + 32 <= n; at += 32)
        mix32(&h, p + at, p + at + 16, secret + 3 + at - 128, seed);
    mix32(&h, p + n - 16, p + n - 32, secret + SECRET_LEAST - 17 - 16, 0 - seed);
    return finish_short(h, n, seed);
}

static inline void
accumulate(uint64_t lanes[8], const char *p, const char *secret)
{
    for (int i = 0; i < 8; i++) {
        uint64_t value = load8(p + 8 * i), key = value ^ load8(secret + 8 * i);
        lanes[i ^ 1] += value;
        lanes[i] += (key & 0xFFFFFFFF) * (key >> 32);
    }
}

static uint64_t
merge(const uint64_t lanes[8], const char *secret, uint64_t start)
{
    for (int i = 0; i < 4; i++)
        start += fold(lanes[2 * i] ^ load8(secret + 16 * i), lanes[2 * i + 1] ^ load8(secret + 16 * i + 8));
    return avalanche(start);
}

static Hash
hash_long(const char *p, size_t n, const char *secret)
{
    uint64_t lanes[8] = {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1};
    /* All stripes but the last, which ends where the line ends and may lie over the one before. */
    size_t stripes = (n - 1) / STRIPE;
    for (size_t i = 0; i < stripes; i++) {
        accumulate(lanes, p + STRIPE * i, secret + 8 * (i % STRIPES));
        if (i % STRIPES == STRIPES - 1) {
            for (int k = 0; k < 8; k++)
                lanes[k] = (lanes[k] ^ lanes[k] >> 47 ^ load8(secret + HASH_SECRET - STRIPE + 8 * k)) * P32_1;
        }
    }
    accumulate(lanes, p + n - STRIPE, secret + HASH_SECRET - STRIPE - 7);
    Hash result = {
        merge(lanes, secret + 11, n * P64_1),
        merge(lanes, secret + HASH_SECRET - STRIPE - 11, ~(n * P64_2)),
    };
    return result;
}

/* Make the secret of a seed, for lines of more than 240 bytes. */
void
hash_secret(char secret[HASH_SECRET], uint64_t seed)
{
    for (int i = 0; i < HASH_SECRET; i += 16) {
        uint64_t low = load8((const char *)default_secret + i) + seed;
        uint64_t high = load8((const char *)default_secret + i + 8) - seed;
        memcpy(secret + i, &low, 8);
        memcpy(secret + i + 8, &high, 8);
    }
}

/* Hash a line of more than 16 bytes; `secret` is that of the seed. */
Hash
hash_of(const char *p, size_t n, uint64_t seed, const char secret[HASH_SECRET])
{
    return n <= 128 ? hash_17_to_128(p, n, seed) : n <= 240 ? hash_129_to_240(p, n, seed) : hash_long(p, n, secret);
}

/* A hash as a number. A new reference. */
PyObject *
hash_number(Hash h)
{
    unsigned char bytes[16];
    memcpy(bytes, &h.low, 8);
    memcpy(bytes + 8, &h.high, 8);
#if PY_VERSION_HEX >= 0x030D0000
    return PyLong_FromUnsignedNativeBytes(bytes, 16, Py_ASNATIVEBYTES_LITTLE_ENDIAN);
#else
    return _PyLong_FromByteArray(bytes, 16, 1, 0);
#endif
}
