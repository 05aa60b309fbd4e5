"""The scenario files that come with vintx, read by path: docs/explore.md tells how to write one."""
