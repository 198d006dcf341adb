"""Compare the engine's prefix cache with those of `mlx_vlm.server` and `mlx_lm.server`: see docs/benchmarks.md."""
