"""The service from outside, held against the OpenAPI document that it is described by."""
