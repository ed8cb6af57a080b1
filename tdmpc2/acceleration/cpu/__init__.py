"""Planning on CPUs with AVX-512: MPPI's inner evaluation as one fused kernel in float32, bf16 or int8."""
