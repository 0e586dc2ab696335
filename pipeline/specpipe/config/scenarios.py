"""The table of scenarios, which `validate.scenarios` names. To add one: a file and a line here."""

SCENARIOS: dict[str, str] = {
    "answers": "specpipe.validate.scenarios.answers:SCENARIO",
    "concurrency": "specpipe.validate.scenarios.concurrency:SCENARIO",
    "sampled": "specpipe.validate.scenarios.sampled:SCENARIO",
    "long": "specpipe.validate.scenarios.long:SCENARIO",
    "stops": "specpipe.validate.scenarios.stops:SCENARIO",
    "acceptance": "specpipe.validate.scenarios.acceptance:SCENARIO",
    "accuracy": "specpipe.validate.scenarios.accuracy:SCENARIO",
    "tasks": "specpipe.validate.scenarios.tasks:SCENARIO",
}
