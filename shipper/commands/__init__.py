"""The commands of the command line, one file each, imported only when called."""

#: The variable by which a shell's completion script asks what may come next.
COMPLETE = "_SHIPPER_COMPLETE"
