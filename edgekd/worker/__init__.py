"""The program on the device that checks, opens, times and runs one model; it never imports torch."""
