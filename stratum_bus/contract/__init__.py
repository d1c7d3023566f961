"""The contract with everybody who takes part: schemas, subjects, and what may change in them.

All of it is generated from the definitions that the code runs on: the Structs of the event types
(`schemas`, `compare`, `record`), the grammar of subjects (`grammar`), and both together with the
agents of a project as an AsyncAPI document (`asyncapi`).
"""
