"""The servers that are measured, one small program or application each. All echo: text as text, binary as binary."""
