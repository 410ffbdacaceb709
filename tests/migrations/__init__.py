"""Tests of migrations that move rows: each from the revision before it, with rows that the code of then has made."""
