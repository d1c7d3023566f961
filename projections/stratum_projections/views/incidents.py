"""What was found wrong, since when, what was asked for, and how it ended.

`incidents`, one row an incident:
  incident, seq    the id and sequence of the event that opened it
  kind, agent, instance, about
                   what it is, whose, of which of its instances, and which message or run; NULL
                   where it is about no single one
  severity, text, evidence
                   how bad, in words, and the facts as JSON
  status           open or closed; the first event that names it closes it
  since            when it had begun, by what was seen; `opened` is when it was stored
  closed, closed_seq, over
                   when it was closed, by which event, and why it is over; NULL while it is open
  seconds          how long it lasted, from `since`; NULL while it is open
  command          what the health projector asked for, at first, and once it is closed in all
"""

from stratum_projections.projection import Projection, Step

_TYPE = "stratum.health.incident"

INCIDENTS = Projection(
    name="incidents",
    version=2,
    roles=("control",),
    types=(_TYPE,),
    tables={
        "incidents": """
            incident varchar, seq bigint, kind varchar, agent varchar, instance varchar,
            about varchar, severity varchar, status varchar, text varchar, since timestamptz,
            opened timestamptz, closed_seq bigint, closed timestamptz, seconds double,
            command varchar, over varchar, evidence json
        """
    },
    statements=(
        """
        insert into incidents by name
        select id as incident, seq, data->>'$.kind' as kind, agent,
            data->>'$.instance' as instance, data->>'$.about' as about,
            data->>'$.severity' as severity, 'open' as status, data->>'$.text' as text,
            try_cast(data->>'$.since' as timestamptz) as since, stored as opened,
            data->>'$.command' as command, data->'$.evidence' as evidence
        from batch where data->>'$.opened' is null
        """,
        Step(
            """
            update incidents
            set status = 'closed', closed_seq = said.seq, closed = said.stored, over = said.over,
                command = coalesce(said.command, incidents.command),
                seconds = epoch(said.until) - epoch(incidents.since)
            from (
                select cause, data->>'$.opened' as opened, seq, stored, data->>'$.over' as over,
                    data->>'$.command' as command,
                    try_cast(data->>'$.until' as timestamptz) as until
                from batch where data->>'$.opened' is not null
                qualify row_number() over (partition by cause, opened order by seq) = 1
            ) said
            where incidents.seq = said.cause and incidents.incident = said.opened
                and incidents.status = 'open'
            """,
            (_TYPE,),
        ),
    ),
)
