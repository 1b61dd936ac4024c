"""The program on a board: it keeps the files, the lease and the orders there, and runs them as `local` does.

`parcel.FIRST` names the modules that travel with every connection, because nothing lies on a board that was never
reached: those use the standard library, `edgekd.errors` and each other alone. The others are part of the worker
that is copied once.
"""
