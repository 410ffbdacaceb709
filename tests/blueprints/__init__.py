"""Tests of app/blueprints."""
