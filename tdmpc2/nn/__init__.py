"""Networks and the maths they need."""
