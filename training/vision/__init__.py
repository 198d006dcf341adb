"""`duet-tiny-vl`: a Qwen3-VL checkpoint that reads one line of rendered words and digits."""
