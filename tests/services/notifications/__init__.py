"""Tests of telling the apps."""
