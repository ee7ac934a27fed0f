"""Search in the embedded store: words by FTS5, vectors by their codes and then exactly, filters as SQL.

Nothing in here looks outside one `Share` of a table.
"""

import json
from collections.abc import Iterator, Sequence
from heapq import nlargest
from math import log
from typing import Any, cast

import apsw

from activities.store.filters import Condition, Node, Scalar
from activities.store.fusion import candidates, check_search, fuse
from activities.store.sqlite_shares import Share, Standing, owned, standing, stemmer
from activities.store.words import terms_of

RESCORED = 4096
"""How many vectors, of those whose codes are most like the query's, are compared exactly at least; or an eighth."""

ACCUMULATORS = 4096
"""How many of a share's texts are scored before more frequent terms only add to these; or a quarter of all."""

SATURATED = 2.2
"""BM25's factor of a term that a text is full of: k1 + 1 with FTS5's k1 of 1.2."""
LEAST_IDF = 1e-6
"""Inverse document frequency, as FTS5 has it, of a term that more than half of the texts hold."""

Found = tuple[int, str, float]
"""A row, its record's id and its score."""


def _types(value: Scalar) -> str:
    """SQLite's names of the JSON types that `value` can be compared with."""
    if value is None:
        return "'null'"
    if isinstance(value, bool):
        return "'true', 'false'"
    return "'text'" if isinstance(value, str) else "'integer', 'real'"


def compile_filter(node: Node) -> tuple[str, list[Any]]:
    """A filter as an SQL expression over a document row `c`, never null, and its parameters."""
    if not isinstance(node, Condition):
        parts = [compile_filter(member) for member in node.members]
        arguments = [argument for _, member in parts for argument in member]
        if node.combinator == "$not":
            return f"not ({parts[0][0]})", arguments
        joiner = " or " if node.combinator == "$or" else " and "
        return "(" + (joiner.join(sql for sql, _ in parts) or "1") + ")", arguments

    path = "$" + "".join(f'."{name}"' for name in node.field.split("."))
    if node.operator == "$exists":
        return f"json_type(c.metadata, ?) is {'not ' if node.values[0] else ''}null", [path]
    sign = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}.get(node.operator, "is")
    tests = " or ".join(f"(e.type in ({_types(value)}) and e.atom {sign} ?)" for value in node.values) or "0"
    # json_each yields a scalar as one row and a list as its items; of an object it would yield the members.
    sql = (
        "exists (select 1 from json_each(c.metadata, ?) e "
        f"where json_type(c.metadata, ?) is not 'object' and ({tests}))"
    )
    arguments = [path, path, *node.values]
    if None in node.values:
        sql, arguments = f"({sql} or json_type(c.metadata, ?) is null)", [*arguments, path]
    return (f"not {sql}" if node.operator in ("$ne", "$nin") else sql), arguments


def _named(
    db: apsw.Connection, share: Share, rows: Sequence[int], condition: tuple[str, list[Any]] | None
) -> dict[int, str]:
    """Record ids by row, of those rows of a share that meet a condition."""
    sql, arguments = condition or ("1", [])
    return dict(
        db.execute(
            f"select c.id, c.{share.key} from {share.table} c "
            f"where c.id in (select value from json_each(?)) and {share.where('c.')} and {sql}",
            (json.dumps(rows), *share.arguments, *arguments),
        )
    )


def _parts(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the parts of a list begin and end, of which each is twice as long as the one before it."""
    at = 0
    while at < length:
        yield at, at + size
        at, size = at + size, 2 * size


def nearest(
    db: apsw.Connection,
    share: Share,
    vector: bytes | None,
    k: int,
    condition: tuple[str, list[Any]] | None = None,
    found: Standing | None = None,
) -> list[Found]:
    """The `k` rows of a share with the nearest vectors, and their cosines, best first; ties go to the lower id.

    None where the vector is zeros. In a large share the eighth of its rows is looked at whose codes are most like the
    vector's, or more until RESCORED and four times `k` meet the condition: nearly always the nearest are among them.
    """
    found = found or standing(db, share)
    if vector is None or found is None:
        return []
    sql, arguments = condition or ("1", [])
    where, bound = f"{share.where('c.')} and {sql}", [*share.arguments, *arguments]
    if found.centre is not None:
        from activities.store import sqlite_codes

        wanted, chosen = max(RESCORED, 4 * k), list[int]()
        order = sqlite_codes.nearest(db, found.number, found.centre, vector)
        # Of an eighth of all, those that meet a condition are an eighth of such records, unless it has to do with what
        # is asked for.
        for start, end in _parts(len(order), max(wanted, found.records // 8)):
            part = order[start:end].tolist()
            chosen += part if condition is None else list(_named(db, share, part, condition))
            if len(chosen) >= wanted:
                break
        # The records are looked up of the best alone: of so many, that takes longer than to compare them.
        compared = dict(
            db.execute(
                f"select id, 1.0 - vec_distance_cosine(embedding, ?) as cosine from {share.table}_vectors "
                "where id in (select value from json_each(?)) order by cosine desc, id limit ?",
                (vector, json.dumps(chosen), k),
            )
        )
        best = [(row, name, compared[row]) for row, name in _named(db, share, list(compared), None).items()]
        return sorted(best, key=lambda one: (-one[2], one[1]))
    return cast(
        list[Found],
        db.execute(
            f"select c.id, c.{share.key}, 1.0 - vec_distance_cosine(v.embedding, ?) as cosine "
            f"from {share.table} c join {share.table}_vectors v on v.id = c.id where {where} "
            f"order by cosine desc, c.{share.key} limit ?",
            (vector, *bound, k),
        ).fetchall(),
    )


def keywords(
    db: apsw.Connection,
    share: Share,
    text: str,
    k: int,
    condition: tuple[str, list[Any]] | None = None,
    found: Standing | None = None,
) -> list[Found]:
    """The `k` rows of a share that best match the terms of a query by BM25, best first; ties go to the lower id.

    BM25 counts the share's own texts (only the average length is that of all), a term at a time, rarest first. Once
    ACCUMULATORS of its texts, or a quarter, have a score, more frequent terms only add to those: the strategy
    "continue" of Moffat and Zobel ("Self-indexing inverted files for fast text retrieval", ACM TOIS 14(4), 1996).
    """
    found = found or standing(db, share)
    if found is None:
        return []
    words, number = stemmer(db), found.number
    phrases = [f'"{owned(number, one)}"' for one in map(words, terms_of(text)) if one]
    scores = _scores(db, f"{share.table}_text", phrases, found.records)
    order = sorted(scores, key=lambda row: -scores[row])
    best: list[Found] = []
    for start, end in _parts(len(order), k if condition is None else 4 * k):
        part = order[start:end]
        # A text that scores as much as the last of `k` may have a lower id.
        if len(best) >= k and scores[part[0]] < best[k - 1][2]:
            break
        best += [(row, name, scores[row]) for row, name in _named(db, share, part, condition).items()]
        best.sort(key=lambda one: (-one[2], one[1]))
    return best[:k]


def _scores(db: apsw.Connection, table: str, phrases: Sequence[str], records: int) -> dict[int, float]:
    """BM25 scores of texts by row."""
    frequency: dict[str, int] = {}
    most = max(ACCUMULATORS, records // 4)
    if records > most:
        count = f"select count(*) from {table} where {table} match ?"
        frequency = {phrase: db.execute(count, (phrase,)).get for phrase in phrases}
        phrases = sorted(phrases, key=frequency.__getitem__)
    scores: dict[int, float] = {}
    for phrase in phrases:
        if scores and 2 * frequency.get(phrase, 0) > records:
            # It would add LEAST_IDF to nearly every text of many.
            break
        # FTS5 weighs a term by how many of all users' texts there are. With a text full of the term its score is that
        # weight alone, times SATURATED: divided by it, what is left is the term's part in the text.
        sql = f"select rowid, bm25({table}) as score, bm25({table}, 1e12) from {table} where {table} match ?"
        if len(scores) >= most:
            scores = dict(nlargest(most, scores.items(), key=lambda item: item[1]))
            # Without the +, FTS5 would be asked for each row by itself.
            among = f"{sql} and +rowid in (select value from json_each(?))"
            rows = db.execute(among, (phrase, json.dumps(list(scores))))
        elif frequency.get(phrase, 0) > most:
            rows = db.execute(f"{sql} order by score limit {most}", (phrase,))
        else:
            rows = db.execute(sql, (phrase,))
        parts = cast(list[tuple[int, float, float]], rows.fetchall())
        if not parts:
            continue
        holding = frequency.get(phrase) or len(parts)
        idf = max(LEAST_IDF, log((records - holding + 0.5) / (holding + 0.5)))
        factor = idf * SATURATED / parts[0][2]
        for row, part, _ in parts:
            scores[row] = scores.get(row, 0.0) + factor * part
    return scores


def hybrid(
    db: apsw.Connection,
    share: Share,
    text: str,
    vector: bytes | None,
    limit: int,
    weight: float,
    condition: tuple[str, list[Any]] | None = None,
) -> tuple[list[tuple[str, float]], dict[str, float], dict[str, float]]:
    """Search the rows of `share` that meet `condition` by vector (`weight`) and by keyword (the rest).

    Returns:
        Record ids with fused scores, best first and at most `limit`; cosines and BM25 scores by id.
    """
    cosines, matched = legs(db, share, text, vector, limit, weight, condition)
    return fuse([(weight, list(cosines)), (1 - weight, list(matched))])[:limit], cosines, matched


def legs(
    db: apsw.Connection,
    share: Share,
    text: str,
    vector: bytes | None,
    limit: int,
    weight: float = 0.5,
    condition: tuple[str, list[Any]] | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """The two legs of a hybrid search for `limit`: cosines and BM25 scores by id, best first."""
    check_search(limit, weight)
    k, found = candidates(limit), standing(db, share)
    cosines = nearest(db, share, vector, k, condition, found) if weight > 0 else []
    matched = keywords(db, share, text, k, condition, found) if weight < 1 else []
    return {name: score for _, name, score in cosines}, {name: score for _, name, score in matched}
