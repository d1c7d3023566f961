"""Every message, and what became of it. Derived from the log alone: acknowledgements leave no trace
there, so a message that was taken in without a run stays `sent`.

`messages`, one row a message of an inbox or a topic; times are the server's:
  seq, id, type    its sequence in the log, its event's id and type
  receiver         the agent whose inbox it is in; NULL for a topic's, which may start a run at each
                   agent that follows it
  sender, about    who sent it; the id in the domain that it is about, NULL where it names none
  state            sent; delivered (a run has begun with it); handled (that run is complete or goes
                   on as another, or the run that it was addressed to has taken it in); cancelled
                   (the run was); dead (an open dead letter); redriven or dropped (what was decided
                   about the letter first; a redriven message goes on as a new one, or as a fork).
                   The last of these counts. A topic's message is handled at the first agent, and
                   dead as long as one agent's letter about it is open.
  sent             when it was stored
  delivered, delivered_seq
                   when a run began with it, at the latest, and that run's first entry; NULL where
                   no run has journaled anything yet. A first step's seconds are taken off.
  handled, handled_seq
                   when it was first handled, and by which entry; NULL where it was not
  latency_seconds  from sent to handled
  attempts         the highest number of a delivery that its runs or letters name; NULL if none does
  run              the run of its last outcome, or else the one that began with it first
  correlationid, causationid
                   the event at the root of its conversation, and the one that it follows from
  dead_seq, decided_seq, outcome_seq
                   its last letter, the last decision about one, and what `state` follows from
                   (NULL while it is sent or delivered)

`messages_open` are those in inboxes that nothing has taken yet, `message_letters` the letters that
nothing was decided about.
"""

from stratum_projections.projection import Projection, Step

_RUN = "stratum.run."
_ENDS = tuple(_RUN + end for end in ("completed", "continued", "cancelled", "failed"))
_DELIVERIES = tuple(
    _RUN + kind
    for kind in (
        *("step.completed", "step.failed", "waiting", "wait.completed"),
        *("resumed", "suspended", "compensating", "parked", "sent"),
    )
)
"""Entries that a run may begin with, beside its end."""
_SIGNALLED = _RUN + "signalled"
_LETTERED = "stratum.dead.lettered"
_DECIDED = ("stratum.dead.redriven", "stratum.dead.dropped")

_BEGINS = "(data is null or contains(data, '\"origin\":'))"
"""The first entry of a run says what it began with; a later one with that text changes nothing."""

# What happened to which message: to most of them only what their runs say.
_OF_RUNS = f"""
    select cause as message, seq, stored, run, true as taken,
        stored - to_microseconds(
            (coalesce(try_cast(data->>'$.seconds' as double), 0) * 1e6)::bigint) as began,
        case type when '{_RUN}completed' then 'handled' when '{_RUN}continued' then 'handled'
            when '{_RUN}cancelled' then 'cancelled' end as what,
        case when type in {_ENDS} then try_cast(data->>'$.attempt' as bigint)
            when data->>'$.holder' = stream || '-' || cause
                then try_cast(data->>'$.delivery' as bigint) end as attempts
    from batch
    where role = 'run' and cause is not null and type in {_ENDS + _DELIVERIES}
        and (type in {_ENDS} or type = '{_RUN}resumed' or {_BEGINS})
"""
_OF_ALL = f"""
    {_OF_RUNS}
    union all
    select o.seq, b.seq, b.stored, b.run, true, b.stored, 'handled', null
    from batch b join messages_open o on o.id = b.id[strlen(b.run) + 5:]
    where b.role = 'run' and b.type = '{_SIGNALLED}'
    union all
    select cause, seq, stored, runid, false, null, 'dead',
        try_cast(data->>'$.attempts' as bigint)
    from batch where role = 'dead' and type = '{_LETTERED}' and cause is not null
    union all
    select message, seq, stored, null, false, null, what, null
    from (
        select l.message, b.seq, b.stored,
            case b.type when 'stratum.dead.redriven' then 'redriven' else 'dropped' end as what
        from batch b join message_letters l on l.letter = b.data->>'$.letter' and l.seq < b.seq
        where b.role = 'dead' and b.type in {_DECIDED}
        qualify row_number() over (partition by l.letter order by b.seq) = 1
    )
"""
_UPDATE = """
    update messages
    set state = case
            when became.latest is null then
                case messages.state when 'sent' then 'delivered' else messages.state end
            when became.latest in ('handled', 'cancelled') and messages.receiver is null
                and coalesce(became.dead_seq, messages.dead_seq)
                    > coalesce(became.decided_seq, messages.decided_seq, 0) then 'dead'
            else became.latest end,
        attempts = greatest(messages.attempts, became.attempts),
        run = coalesce(became.last_run, messages.run, became.first_run),
        delivered_seq = coalesce(messages.delivered_seq, became.delivered_seq),
        delivered = coalesce(messages.delivered, became.delivered),
        outcome_seq = coalesce(became.outcome_seq, messages.outcome_seq),
        handled_seq = coalesce(messages.handled_seq, became.handled_seq),
        handled = coalesce(messages.handled, became.handled),
        latency_seconds = epoch(coalesce(messages.handled, became.handled) - messages.sent),
        dead_seq = coalesce(became.dead_seq, messages.dead_seq),
        decided_seq = coalesce(became.decided_seq, messages.decided_seq)
    from (
        select message, max(attempts) as attempts,
            min(seq) filter (where taken) as delivered_seq,
            arg_min(began, seq) filter (where taken) as delivered,
            arg_min(run, seq) filter (where taken) as first_run,
            max(seq) filter (where what is not null) as outcome_seq,
            arg_max(what, seq) filter (where what is not null) as latest,
            arg_max(run, seq) filter (where what is not null and run is not null) as last_run,
            min(seq) filter (where what = 'handled') as handled_seq,
            arg_min(stored, seq) filter (where what = 'handled') as handled,
            max(seq) filter (where what = 'dead') as dead_seq,
            max(seq) filter (where what in ('redriven', 'dropped')) as decided_seq
        from ({outcomes})
        group by message
    ) became
    where messages.seq = became.message
"""

MESSAGES = Projection(
    name="messages",
    blobs=(_LETTERED,),
    version=2,
    roles=("inbox", "topic", "run", "dead"),
    tables={
        "messages": """
            seq bigint, id varchar, receiver varchar, sender varchar, type varchar, state varchar,
            sent timestamptz, delivered_seq bigint, delivered timestamptz, handled_seq bigint,
            handled timestamptz, latency_seconds double, attempts bigint, run varchar,
            about varchar, correlationid varchar, causationid varchar, dead_seq bigint,
            decided_seq bigint, outcome_seq bigint
        """,
        "messages_open": "seq bigint, id varchar",
        "message_letters": "letter varchar, seq bigint, message bigint",
    },
    statements=(
        """
        insert into messages by name
        select seq, id, agent as receiver, sender, type, 'sent' as state, stored as sent,
            about, correlationid, causationid
        from batch where role in ('inbox', 'topic')
        """,
        "insert into messages_open select seq, id from batch where role = 'inbox'",
        Step(
            f"""
            insert into message_letters
            select id, seq, cause from batch where role = 'dead' and type = '{_LETTERED}'
            """,
            (_LETTERED,),
        ),
        Step(_UPDATE.replace("{outcomes}", _OF_RUNS), (*_ENDS, *_DELIVERIES)),
        # Over again with the runs, for the last outcome counts; where there is more than them.
        Step(_UPDATE.replace("{outcomes}", _OF_ALL), (_SIGNALLED, _LETTERED, *_DECIDED)),
        Step(
            f"""
            delete from messages_open o
            using (select cause from batch where role = 'run' and {_BEGINS}) b
            where o.seq = b.cause
            """,
            (*_ENDS, *_DELIVERIES),
        ),
        Step(
            f"""
            delete from messages_open o using batch b
            where b.role = 'run' and b.type = '{_SIGNALLED}' and o.id = b.id[strlen(b.run) + 5:]
            """,
            (_SIGNALLED,),
        ),
        Step(
            """
            delete from message_letters l using batch b
            where b.role = 'dead' and l.letter = b.data->>'$.letter' and l.seq < b.seq
            """,
            _DECIDED,
        ),
    ),
)
