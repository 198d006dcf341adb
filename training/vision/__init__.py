"""`duet-tiny-vl`: a qwen3_vl checkpoint that reads one line of rendered words and digits."""
