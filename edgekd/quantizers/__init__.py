"""A float model and calibration inputs in, an int8 model out; a child process, one file a method.

Quantisers parse models and load torch: `python -m edgekd.quantizers` keeps both away from the run, and serves
many orders, because loading takes seconds.
"""
