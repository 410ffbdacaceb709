"""The marshmallow schemas: what is accepted, what is answered, and the one source of the OpenAPI document."""
