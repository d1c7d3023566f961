"""What was found wrong, since when, what was asked for, and how it ended: `open` or `closed`.

`command` is what the health projector asked for, at first, and once it is closed in all. An
incident is closed by the first event that names it.
"""

from stratum_projections.projection import Projection, Step

_TYPE = "stratum.health.incident"

INCIDENTS = Projection(
    name="incidents",
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
        from batch
        where data->>'$.opened' is null and not exists (from incidents i where i.incident = batch.id)
        qualify row_number() over (partition by id order by seq) = 1
        """,
        Step(
            """
            update incidents
            set status = 'closed', closed_seq = said.seq, closed = said.stored, over = said.over,
                command = coalesce(said.command, incidents.command),
                seconds = epoch(said.until) - epoch(incidents.since)
            from (
                select i.incident, b.seq, b.stored, b.data->>'$.over' as over,
                    b.data->>'$.command' as command,
                    try_cast(b.data->>'$.until' as timestamptz) as until
                from batch b
                join incidents i on i.incident = b.data->>'$.opened'
                where i.status = 'open' and i.seq < b.seq
                qualify row_number() over (partition by i.incident order by b.seq) = 1
            ) said
            where incidents.incident = said.incident
            """,
            (_TYPE,),
        ),
    ),
)
