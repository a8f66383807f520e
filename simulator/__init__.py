"""A network that does not exist, and recordings of networks that did, sent through the HTTP door.

    fleet.py     sites, roles, devices, interfaces, links: the series there are
    signals.py   value = f(seed, series, time)
    effects.py   what faults do to those values, as arrays
    faults.py    which faults happen when, from a seed; truth.py writes them down and compares alerts with them
    manners.py   late, repeated, disordered and malformed events
    polls.py     which series are due when
    wire.py      a frame of events -> request bodies
    client.py    bodies -> the API, in order per device, again where asked to
    run.py       `telemetry simulate`; replay.py and recordings.py: `telemetry replay`

Nothing here imports the pipeline: like any device, the simulator knows it by its HTTP contract only.
"""
