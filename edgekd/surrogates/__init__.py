"""What a student will cost and reach, learnt from few measurements: numbers in, numbers out."""
