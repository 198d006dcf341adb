"""What the engine keeps of prompts, measured beside `mlx_vlm.server` and `mlx_lm.server`: see docs/benchmarks.md."""
