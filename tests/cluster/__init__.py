"""Tests on a real cluster, where one is named: --engine kubernetes."""
