"""The promises of docs/trust.md, one module for each part."""
