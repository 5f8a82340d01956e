"""Documents made from the code: ``docs/reference`` (`reference`) and ``man/shipper.1`` (`manual`).

``make docs`` writes them, ``make check`` fails when they are not in step. On the top floor: imports anything, and
nothing imports it. Begin with `reference`.
"""
