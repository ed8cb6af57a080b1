"""Many runs compared: tables, figures, held-out errors."""
