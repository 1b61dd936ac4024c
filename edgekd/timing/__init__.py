"""Take latency samples, note the conditions they were taken under, and judge whether to believe them."""
