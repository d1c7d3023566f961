"""Every message, and what became of it. Derived from the log alone: acknowledgements leave no trace
there, so a message that was taken in without a run stays `sent`.

`state`: sent, handled (a run that it started is complete), dead (an open dead letter), redriven or
dropped (what was decided about the letter; a redriven message goes on as a new one). A topic's
message has no `receiver` and may start a run at each agent that follows it; it is `handled` at the
first, and `dead` as long as one agent's letter about it is open.
"""

from stratum_projections.projection import Projection, Step

# What happened to which message. Letters are kept, for a decision names only the letter.
_OUTCOMES = """
    select causationid as message, seq, stored, 'handled' as what, runid as run,
        try_cast(data->>'$.attempt' as bigint) as attempts
    from batch where role = 'run' and type = 'stratum.run.completed'
    union all
    select l.message, l.seq, b.stored, 'dead', b.runid,
        try_cast(b.data->>'$.attempts' as bigint)
    from batch b join message_letters l on l.letter = b.id and l.seq = b.seq
    where b.role = 'dead' and b.type = 'stratum.dead.lettered'
    union all
    select l.message, b.seq, b.stored,
        case b.type when 'stratum.dead.redriven' then 'redriven' else 'dropped' end, null, null
    from batch b join message_letters l on l.letter = b.data->>'$.letter' and l.seq < b.seq
    where b.role = 'dead' and b.type in ('stratum.dead.redriven', 'stratum.dead.dropped')
"""

_BECAME = f"""
    select place, outcome_seq, attempts, run, handled_seq, handled, dead_seq, decided_seq,
        case
            when latest = 'handled' and receiver is null and dead_seq is not null
                and (decided_seq is null or decided_seq < dead_seq) then 'dead'
            else latest
        end as state
    from (
        select m.rowid as place, m.receiver,
            max(o.seq) as outcome_seq,
            arg_max(o.what, o.seq) as latest,
            coalesce(arg_max(o.attempts, o.seq), any_value(m.attempts)) as attempts,
            coalesce(arg_max(o.run, o.seq), any_value(m.run)) as run,
            coalesce(any_value(m.handled_seq),
                min(o.seq) filter (where o.what = 'handled')) as handled_seq,
            coalesce(any_value(m.handled),
                arg_min(o.stored, o.seq) filter (where o.what = 'handled')) as handled,
            coalesce(max(o.seq) filter (where o.what = 'dead'),
                any_value(m.dead_seq)) as dead_seq,
            coalesce(max(o.seq) filter (where o.what in ('redriven', 'dropped')),
                any_value(m.decided_seq)) as decided_seq
        from ({_OUTCOMES}) o
        join messages m on m.id = o.message and m.seq < o.seq
        group by m.rowid, m.receiver
    )
"""

MESSAGES = Projection(
    name="messages",
    roles=("inbox", "topic", "run", "dead"),
    tables={
        "messages": """
            seq bigint, id varchar, receiver varchar, sender varchar, type varchar, state varchar,
            sent timestamptz, handled_seq bigint, handled timestamptz, latency_seconds double,
            attempts bigint, run varchar, about varchar, correlationid varchar,
            causationid varchar, dead_seq bigint, decided_seq bigint, outcome_seq bigint
        """,
        "message_letters": "letter varchar, seq bigint, message varchar",
    },
    statements=(
        """
        insert into messages by name
        select seq, id, agent as receiver, sender, type, 'sent' as state, stored as sent,
            about, correlationid, causationid
        from batch
        where role in ('inbox', 'topic') and not exists (from messages m where m.id = batch.id)
        qualify row_number() over (partition by id order by seq) = 1
        """,
        Step(
            """
            insert into message_letters by name
            select id as letter, seq, coalesce(data->>'$.origin.id', causationid) as message
            from batch
            where role = 'dead' and type = 'stratum.dead.lettered'
                and not exists (from message_letters l where l.letter = batch.id)
            qualify row_number() over (partition by id order by seq) = 1
            """,
            ("stratum.dead.lettered",),
        ),
        Step(
            f"""
            update messages
            set state = became.state, outcome_seq = became.outcome_seq, attempts = became.attempts,
                run = became.run, handled_seq = became.handled_seq, handled = became.handled,
                latency_seconds = epoch(became.handled - messages.sent),
                dead_seq = became.dead_seq, decided_seq = became.decided_seq
            from ({_BECAME}) became
            where messages.rowid = became.place
            """,
            (
                "stratum.run.completed",
                "stratum.dead.lettered",
                "stratum.dead.redriven",
                "stratum.dead.dropped",
            ),
        ),
    ),
)
