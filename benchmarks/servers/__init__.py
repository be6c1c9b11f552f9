"""The benchmarked servers, each a small program or application. All echo text as text and binary as binary."""
