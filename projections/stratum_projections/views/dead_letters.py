"""What could not be handled, why, and what was decided about it.

`dead_letters`, one row a letter; times are the server's:
  letter, seq      the id and sequence of the event that says so
  receiver, type   the agent that could not handle the message, and the message's type
  state            open; redriven or dropped, by the first decision about it
  reason           rejected, failed, unreadable, undeliverable or poison
  error, attempts  what was wrong, and how often it was tried
  message, origin_stream, origin_seq, origin_subject
                   the id of the message, and where it stands
  time             when the letter was stored
  decided, decided_seq, decision
                   when it was decided, by which event, and why; NULL while it is open

`dead_letters_open` are those that are open.
"""

from stratum_projections.projection import Projection, Step

_LETTERED = "stratum.dead.lettered"
_DECIDED = ("stratum.dead.redriven", "stratum.dead.dropped")

DEAD_LETTERS = Projection(
    name="dead_letters",
    version=2,
    roles=("dead",),
    types=(_LETTERED, *_DECIDED),
    tables={
        "dead_letters": """
            letter varchar, seq bigint, receiver varchar, type varchar, state varchar,
            reason varchar, error varchar, attempts bigint, message varchar,
            origin_stream varchar, origin_seq bigint, origin_subject varchar, time timestamptz,
            decided_seq bigint, decided timestamptz, decision varchar
        """,
        "dead_letters_open": "letter varchar, seq bigint",
    },
    statements=(
        Step(
            f"""
            insert into dead_letters by name
            select id as letter, seq, agent as receiver,
                subject[strlen('dead.' || agent || '.') + 1:] as type, 'open' as state,
                data->>'$.reason' as reason, data->>'$.error' as error,
                try_cast(data->>'$.attempts' as bigint) as attempts,
                coalesce(data->>'$.origin.id', causationid) as message,
                data->>'$.origin.stream' as origin_stream,
                try_cast(data->>'$.origin.sequence' as bigint) as origin_seq,
                data->>'$.origin.subject' as origin_subject, stored as time
            from batch where type = '{_LETTERED}'
            """,
            (_LETTERED,),
        ),
        Step(
            f"""
            insert into dead_letters_open
            select id as letter, seq from batch where type = '{_LETTERED}'
            """,
            (_LETTERED,),
        ),
        Step(
            f"""
            update dead_letters
            set state = said.state, decided_seq = said.seq, decided = said.stored,
                decision = said.reason
            from (
                select o.seq as place, b.seq, b.stored, b.data->>'$.reason' as reason,
                    case b.type when 'stratum.dead.redriven' then 'redriven' else 'dropped' end
                        as state
                from batch b join dead_letters_open o on o.letter = b.data->>'$.letter'
                where b.type in {_DECIDED} and o.seq < b.seq
                qualify row_number() over (partition by o.seq order by b.seq) = 1
            ) said
            where dead_letters.seq = said.place
            """,
            _DECIDED,
        ),
        Step(
            f"""
            delete from dead_letters_open o using batch b
            where b.type in {_DECIDED} and o.letter = b.data->>'$.letter' and o.seq < b.seq
            """,
            _DECIDED,
        ),
    ),
)
