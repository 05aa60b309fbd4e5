"""The pytest plug-in: the `vm` fixture gives a machine, its QMP client and its trace."""

from __future__ import annotations
