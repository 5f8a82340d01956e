"""The command line: one module a command, imported only when it is called, so that none pays for the others.

``shipper/__main__.py`` lists them and is where to begin; `options` has what several share. A command reads arguments,
calls the package that does the work and prints: it may import everything except `shipper.docgen`, inside functions
where that is slow, and nothing but ``__main__`` imports it.
"""

#: The variable by which a shell's completion script asks what may come next.
COMPLETE = "_SHIPPER_COMPLETE"
