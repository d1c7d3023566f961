"""What could not be handled, why, and what was decided about it: open, redriven or dropped.

A letter's first decision counts. `receiver` could not handle the message `message`, which stands at
`origin_seq` of `origin_stream`.
"""

from stratum_projections.projection import Projection, Step

DEAD_LETTERS = Projection(
    name="dead_letters",
    roles=("dead",),
    types=("stratum.dead.lettered", "stratum.dead.redriven", "stratum.dead.dropped"),
    tables={
        "dead_letters": """
            letter varchar, seq bigint, receiver varchar, type varchar, state varchar,
            reason varchar, error varchar, attempts bigint, message varchar,
            origin_stream varchar, origin_seq bigint, origin_subject varchar, time timestamptz,
            decided_seq bigint, decided timestamptz, decision varchar
        """
    },
    statements=(
        """
        insert into dead_letters by name
        select id as letter, seq, agent as receiver,
            subject[strlen('dead.' || agent || '.') + 1:] as type, 'open' as state,
            data->>'$.reason' as reason, data->>'$.error' as error,
            try_cast(data->>'$.attempts' as bigint) as attempts,
            coalesce(data->>'$.origin.id', causationid) as message,
            data->>'$.origin.stream' as origin_stream,
            try_cast(data->>'$.origin.sequence' as bigint) as origin_seq,
            data->>'$.origin.subject' as origin_subject, stored as time
        from batch
        where type = 'stratum.dead.lettered'
            and not exists (from dead_letters d where d.letter = batch.id)
        qualify row_number() over (partition by id order by seq) = 1
        """,
        Step(
            """
            update dead_letters
            set state = said.state, decided_seq = said.seq, decided = said.stored,
                decision = said.reason
            from (
                select d.letter, b.seq, b.stored, b.data->>'$.reason' as reason,
                    case b.type when 'stratum.dead.redriven' then 'redriven' else 'dropped' end
                        as state
                from batch b
                join dead_letters d on d.letter = b.data->>'$.letter'
                where b.type <> 'stratum.dead.lettered' and d.state = 'open' and d.seq < b.seq
                qualify row_number() over (partition by d.letter order by b.seq) = 1
            ) said
            where dead_letters.letter = said.letter
            """,
            ("stratum.dead.redriven", "stratum.dead.dropped"),
        ),
    ),
)
