"""The connection that an application holds, and the ways to make one of a stream."""
