"""The verbs: one function a file, values in, a value out, writing only in the folder it is given."""
