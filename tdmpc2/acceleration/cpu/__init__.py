"""Planning on CPUs: MPPI's inner evaluation as one fused kernel in float32, bf16 or int8, on any processor."""
