"""What every warehouse must do for us, embedded or real: one class of tests that needs nothing but a URL.

``DRIFTLINE_TEST_CLICKHOUSE_URL=http://user:password@host:8123`` points it to a real server; without it the
embedded one is started. All access is through an unmodified clickhouse-connect client.
"""

from __future__ import annotations

import datetime as dt
import gzip
import math
import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import clickhouse_connect
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

pytestmark = pytest.mark.integration

MILLION = 1_000_000
Connect = Callable[[], Client]


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest) -> str:
    """The server under test."""
    configured = os.environ.get("DRIFTLINE_TEST_CLICKHOUSE_URL")
    return configured or str(request.getfixturevalue("warehouse").url)


@pytest.fixture
def connect(url: str, unique_name: str) -> Iterator[Connect]:
    """Makes clients of a database of this test's own."""
    with clickhouse_connect.get_client(dsn=url) as admin:
        admin.command(f"CREATE DATABASE {unique_name}")
        clients: list[Client] = []

        def make() -> Client:
            clients.append(clickhouse_connect.get_client(dsn=url, database=unique_name))
            return clients[-1]

        yield make
        for client in clients:
            client.close()
        admin.command(f"DROP DATABASE {unique_name}")


@pytest.fixture
def client(connect: Connect) -> Client:
    return connect()


DAY = dt.date(2013, 3, 10)
INSTANT = dt.datetime(2013, 3, 10, 6, 59, 59, 123000, tzinfo=dt.UTC)
IDENTITY = uuid.UUID("12345678-1234-5678-1234-567812345678")
TYPES: list[tuple[str, list[Any]]] = [
    ("String", ["", "naïve ☃ 'quoted' \\ \t\n", "x" * 100_000]),
    ("LowCardinality(String)", ["a", "b", "a"]),
    ("Int8", [-128, 0, 127]),
    ("Int16", [-(2**15), 0, 2**15 - 1]),
    ("Int32", [-(2**31), 0, 2**31 - 1]),
    ("Int64", [-(2**63), 0, 2**63 - 1]),
    ("UInt8", [0, 1, 255]),
    ("UInt16", [0, 1, 2**16 - 1]),
    ("UInt32", [0, 1, 2**32 - 1]),
    ("UInt64", [0, 1, 2**64 - 1]),
    ("Float32", [0.0, -1.5, math.inf]),
    ("Float64", [0.1 + 0.2, -math.inf, 5e-324]),
    ("Bool", [True, False, True]),
    ("DateTime64(3, 'UTC')", [INSTANT, dt.datetime(1970, 1, 1, tzinfo=dt.UTC), INSTANT]),
    ("Date", [DAY, dt.date(1970, 1, 1), dt.date(2100, 1, 1)]),
    ("UUID", [IDENTITY, uuid.UUID(int=0), IDENTITY]),
    ("FixedString(4)", [b"abcd", b"\x00\x01\x02\x03", b"zzzz"]),
    ("Array(UInt64)", [[], [1, 2**64 - 1], [0]]),
    ("Array(Float64)", [[], [0.5, math.inf], [-0.0]]),
    ("Array(String)", [[], ["a", "b'c"], [""]]),
    ("Map(LowCardinality(String), UInt64)", [{}, {"EWR": 1, "JFK": 2**63}, {"": 0}]),
    ("Map(Int16, UInt64)", [{}, {-1: 5, 32767: 7}, {0: 0}]),
    ("Nullable(Float64)", [None, 1.5, None]),
    ("Nullable(String)", [None, "", "x"]),
    ("LowCardinality(Nullable(String))", [None, "a", "a"]),
    ("Enum8('stable' = 1, 'canary' = 2, 'shadow' = 3)", ["stable", "shadow", "canary"]),
    ("Decimal(18, 4)", [Decimal("-1.2345"), Decimal(0), Decimal("99999999.9999")]),
]


class TestWarehouseContract:
    """Everything the sinks, the label join, the trainer and an analyst rely on."""

    @pytest.mark.parametrize(("type_name", "values"), TYPES, ids=[name for name, _ in TYPES])
    def test_type_round_trips(self, client: Client, type_name: str, values: list[Any]) -> None:
        """Each type we store comes back as it went in, in order."""
        client.command(f"CREATE TABLE t (i UInt8, v {type_name}) ENGINE = MergeTree ORDER BY i")
        client.insert("t", [[i, value] for i, value in enumerate(values)], column_names=["i", "v"])
        read = [row[0] for row in client.query("SELECT v FROM t ORDER BY i", tz_mode="aware").result_rows]
        assert read == values

    def test_nan_round_trips(self, client: Client) -> None:
        """NaN stays NaN in both float widths."""
        client.command("CREATE TABLE t (a Float32, b Float64) ENGINE = MergeTree ORDER BY tuple()")
        client.insert("t", [[math.nan, math.nan]], column_names=["a", "b"])
        a, b = client.query("SELECT a, b FROM t").result_rows[0]
        assert math.isnan(a)
        assert math.isnan(b)

    def test_json_kept_as_text_can_be_queried(self, client: Client) -> None:
        """Evidence is stored as JSON text and read with JSONExtract."""
        client.command("CREATE TABLE t (v String) ENGINE = MergeTree ORDER BY tuple()")
        client.insert("t", [['{"score": 0.25, "tags": ["a"]}']], column_names=["v"])
        query = "SELECT JSONExtractFloat(v, 'score'), JSONExtract(v, 'tags', 'Array(String)') FROM t"
        assert client.query(query).result_rows == [(0.25, ["a"])]

    def test_million_rows_by_column(self, client: Client) -> None:
        """A columnar insert of a million rows (many compressed blocks) arrives whole."""
        _create_wide(client)
        numbers = np.arange(MILLION, dtype=np.uint64)
        columns: list[Any] = [numbers, numbers * 0.5, [f"p{i}" for i in range(MILLION)]]
        written = client.insert("t", columns, column_names=["a", "b", "s"], column_oriented=True)
        assert written.written_rows == MILLION
        _assert_whole(client)

    @pytest.mark.parametrize(
        ("block_rows", "compression"),
        [(1_000, None), (65_409, None), (400_000, None), (65_409, "gzip"), (65_409, "lz4"), (65_409, "zstd")],
    )
    def test_million_rows_as_native_blocks(
        self, client: Client, block_rows: int, compression: str | None
    ) -> None:
        """A raw body of many Native blocks arrives whole, however it is cut and compressed."""
        _create_wide(client)
        body = client.raw_query(
            f"SELECT number AS a, number * 0.5 AS b, concat('p', toString(number)) AS s FROM numbers({MILLION})",
            settings={"max_block_size": block_rows},
            fmt="Native",
        )
        client.raw_insert(
            "t", ["a", "b", "s"], _compressed(body, compression), fmt="Native", compression=compression
        )
        _assert_whole(client)

    def test_million_rows_from_arrow(self, client: Client) -> None:
        """An Arrow table of a million rows in many record batches arrives whole."""
        _create_wide(client)
        numbers = np.arange(MILLION, dtype=np.uint64)
        table = pa.table({"a": numbers, "b": numbers * 0.5, "s": [f"p{i}" for i in range(MILLION)]})
        batches = pa.Table.from_batches(table.to_batches(max_chunksize=30_000))
        client.insert_arrow("t", batches)
        _assert_whole(client)

    def test_million_rows_from_pandas(self, client: Client) -> None:
        """A data frame of a million rows arrives whole."""
        _create_wide(client)
        numbers = np.arange(MILLION, dtype=np.uint64)
        client.insert_df(
            "t", pd.DataFrame({"a": numbers, "b": numbers * 0.5, "s": "p" + pd.Series(numbers).astype(str)})
        )
        _assert_whole(client)

    @pytest.mark.parametrize(
        ("fmt", "body"),
        [
            ("JSONEachRow", b'{"a":1,"b":0.5,"s":"x"}\n{"a":2,"b":1.5,"s":"y"}\n'),
            ("CSV", b'1,0.5,"x"\n2,1.5,"y"\n'),
            ("TSV", b"1\t0.5\tx\n2\t1.5\ty\n"),
            ("CSVWithNames", b'"s","b","a"\n"x",0.5,1\n"y",1.5,2\n'),
            (
                "RowBinary",
                b"\x01" + bytes(7) + np.float64(0.5).tobytes() + b"\x01x"
                b"\x02" + bytes(7) + np.float64(1.5).tobytes() + b"\x01y",
            ),
        ],
    )
    def test_text_and_row_formats(self, client: Client, fmt: str, body: bytes) -> None:
        """What curl users send: each common format, with the data in the body."""
        _create_wide(client)
        client.raw_insert("t", ["a", "b", "s"], body, fmt=fmt)
        assert client.query("SELECT a, b, s FROM t ORDER BY a").result_rows == [(1, 0.5, "x"), (2, 1.5, "y")]

    def test_values_and_insert_select(self, client: Client) -> None:
        """INSERT with literal values, with expressions, with server-side parameters, and from a query."""
        _create_wide(client)
        client.command("INSERT INTO t (a, b, s) VALUES (1, 0.5, 'a;b'), (1 + 1, sqrt(4), upper('x'));")
        client.command(
            "INSERT INTO t VALUES ({a:UInt64}, {b:Float64}, {s:String})", {"a": 3, "b": 0.25, "s": "it's"}
        )
        client.command("INSERT INTO t SELECT number + 4, 0, 'q' FROM numbers(2)")
        rows = client.query("SELECT a, s FROM t ORDER BY a").result_rows
        assert rows == [(1, "a;b"), (2, "X"), (3, "it's"), (4, "q"), (5, "q")]

    def test_replacing_merge_tree_with_argmax(self, client: Client) -> None:
        """Cumulative upserts: the highest version wins whatever the order and number of its arrivals."""
        client.command(
            "CREATE TABLE t (k String, v UInt64, version UInt64) ENGINE = ReplacingMergeTree(version) ORDER BY k"
        )
        for row in (["a", 10, 1], ["a", 30, 3], ["a", 20, 2], ["a", 30, 3], ["b", 1, 1]):
            client.insert("t", [row], column_names=["k", "v", "version"])
        expected = [("a", 30), ("b", 1)]
        assert (
            client.query("SELECT k, argMax(v, version) FROM t GROUP BY k ORDER BY k").result_rows == expected
        )
        assert client.query("SELECT k, v FROM t FINAL ORDER BY k").result_rows == expected
        client.command("OPTIMIZE TABLE t FINAL")
        assert client.query("SELECT count() FROM t").result_rows == [(2,)]

    def test_sum_map_over_partitions(self, client: Client) -> None:
        """Histograms of several partitions are added key by key."""
        client.command("CREATE TABLE t (p UInt8, h Map(Int16, UInt64)) ENGINE = MergeTree ORDER BY p")
        client.insert("t", [[0, {-1: 1, 2: 5}], [1, {2: 7, 9: 1}]], column_names=["p", "h"])
        assert client.query("SELECT sumMap(h) FROM t").result_rows == [({-1: 1, 2: 12, 9: 1},)]

    def test_readers_while_inserting(self, connect: Connect) -> None:
        """Readers see only whole inserts while a writer is at work, and neither waits for the other to end."""
        writer = connect()
        _create_wide(writer)
        inserts, rows = 40, 5_000
        columns: list[Any] = [np.arange(rows, dtype=np.uint64), np.ones(rows), ["x"] * rows]

        def write() -> None:
            for _ in range(inserts):
                writer.insert("t", columns, column_names=["a", "b", "s"], column_oriented=True)

        def read(reader: Client) -> list[int]:
            seen = [0]
            while seen[-1] < inserts * rows:
                seen.append(reader.query("SELECT count() FROM t").result_rows[0][0])
            return seen

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read, connect()) for _ in range(3)]
            pool.submit(write).result(timeout=200)
            for reader in readers:
                seen = reader.result(timeout=200)
                assert seen == sorted(seen)
                assert all(count % rows == 0 for count in seen)

    def test_writers_side_by_side(self, connect: Connect) -> None:
        """Several sinks insert at once, from threads as async services do; every row arrives once."""
        _create_wide(connect())

        def write(first: int) -> None:
            own = connect()
            for start in range(first, first + 50_000, 5_000):
                numbers = np.arange(start, start + 5_000, dtype=np.uint64)
                columns: list[Any] = [numbers, numbers * 0.5, ["x"] * 5_000]
                own.insert("t", columns, column_names=["a", "b", "s"], column_oriented=True)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(0, 200_000, 50_000)))
        query = "SELECT count(), uniqExact(a), sum(a) FROM t"
        assert connect().query(query).result_rows == [(200_000, 200_000, 199_999 * 100_000)]

    def test_server_side_parameters(self, client: Client) -> None:
        """Bound parameters of each kind are values, never SQL; long ones work too."""
        hostile = "x'; DROP TABLE t; -- \\ \t\n ☃"
        query = (
            "SELECT {s:String}, {n:Int64}, {l:Array(String)}, {t:DateTime64(3, 'UTC')}, {o:Nullable(String)}"
        )
        values = {"s": hostile, "n": -5, "l": [hostile, ""], "t": INSTANT, "o": None}
        assert client.query(query, values, tz_mode="aware").result_rows == [
            (hostile, -5, [hostile, ""], INSTANT, None)
        ]
        assert client.query("SELECT length({s:String})", {"s": "y" * 100_000}).result_rows == [(100_000,)]
        assert client.query("SELECT count() FROM system.{t:Identifier}", {"t": "one"}).result_rows == [(1,)]

    def test_settings_hold_for_one_query(self, client: Client) -> None:
        """A setting sent with one query does not reach the next; an unknown one is refused by name."""
        query = "SELECT value FROM system.settings WHERE name = 'max_threads'"
        before = client.query(query).result_rows
        assert client.query(query, settings={"max_threads": 7}).result_rows == [("7",)]
        assert client.query(query).result_rows == before
        client.command("SET max_threads = 3")
        assert client.query(query, settings={"max_threads": 7}).result_rows == [("7",)]
        assert client.query(query).result_rows == [("3",)]

    def test_settings_reach_inserts(self, client: Client) -> None:
        """A setting sent with an insert changes how its data is read, for that insert alone."""
        _create_wide(client)
        row = b'{"a":1,"b":0.5,"s":"x","surplus":1}'
        client.raw_insert(
            "t", insert_block=row, fmt="JSONEachRow", settings={"input_format_skip_unknown_fields": 1}
        )
        with pytest.raises(DatabaseError):
            client.raw_insert(
                "t", insert_block=row, fmt="JSONEachRow", settings={"input_format_skip_unknown_fields": 0}
            )
        assert client.query("SELECT a, b, s FROM t").result_rows == [(1, 0.5, "x")]

    def test_long_lists_go_through_a_temporary_table(self, client: Client) -> None:
        """The cold label look-up: fifty thousand ids are inserted into the session and joined."""
        _create_wide(client)
        numbers = np.arange(100_000, dtype=np.uint64)
        columns: list[Any] = [numbers, numbers * 0.5, ["x"] * 100_000]
        client.insert("t", columns, column_names=["a", "b", "s"], column_oriented=True)
        client.command("CREATE TEMPORARY TABLE wanted (a UInt64)")
        wanted: list[Any] = [numbers[::2] + 50_000]
        client.insert("wanted", wanted, column_names=["a"], column_oriented=True)
        assert client.query("SELECT count() FROM t WHERE a IN (SELECT a FROM wanted)").result_rows == [
            (25_000,)
        ]

    def test_temporary_tables_belong_to_a_session(self, connect: Connect) -> None:
        """A temporary table lives between the queries of one client and is unknown to others."""
        mine, other = connect(), connect()
        mine.command("CREATE TEMPORARY TABLE mine (a UInt8)")
        mine.insert("mine", [[7]], column_names=["a"])
        assert mine.query("SELECT a FROM mine").result_rows == [(7,)]
        with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
            other.query("SELECT a FROM mine")

    @pytest.mark.parametrize(
        ("statement", "code", "name"),
        [
            ("SELECT * FROM nowhere", 60, "UNKNOWN_TABLE"),
            ("SELEC 1", 62, "SYNTAX_ERROR"),
            ("SELECT 1; SELECT 2", 62, "SYNTAX_ERROR"),
            ("SELECT nothing FROM system.one", 47, "UNKNOWN_IDENTIFIER"),
            ("SELECT noSuchFunction(1)", 46, "UNKNOWN_FUNCTION"),
            ("SELECT toUInt8('x')", 6, "CANNOT_PARSE_TEXT"),
            ("INSERT INTO nowhere VALUES (1)", 60, "UNKNOWN_TABLE"),
            ("DROP TABLE nowhere", 60, "UNKNOWN_TABLE"),
            ("SELECT throwIf(number = 3) FROM numbers(10)", 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ],
    )
    def test_errors_carry_the_code(self, client: Client, statement: str, code: int, name: str) -> None:
        """A refused statement is a DatabaseError with ClickHouse's own code and name; the client stays usable."""
        with pytest.raises(DatabaseError) as refused:
            client.command(statement)
        assert (refused.value.code, refused.value.name) == (code, name)
        assert client.command("SELECT 1") == 1

    def test_wrong_database_and_setting(self, url: str, client: Client) -> None:
        """An unknown database is an error when it is first used; an unknown setting is an error on the query."""
        with (
            pytest.raises(DatabaseError) as refused,
            clickhouse_connect.get_client(dsn=url, database="nowhere") as lost,
        ):
            lost.query("SELECT 1")
        assert refused.value.code == 81
        with pytest.raises(DatabaseError) as refused:
            client.raw_query("SELECT 1 SETTINGS no_such_setting = 1")
        assert refused.value.code == 115

    def test_error_in_the_middle_of_a_stream(self, client: Client) -> None:
        """A query that fails after rows were sent raises; it does not look like a short result."""
        query = "SELECT throwIf(number = 900000) FROM numbers(1000000) SETTINGS max_block_size = 10000"
        with pytest.raises(DatabaseError), client.query_row_block_stream(query) as blocks:
            for _ in blocks:
                pass
        assert client.command("SELECT 1") == 1

    def test_wrong_type_leaves_nothing(self, client: Client) -> None:
        """A value that does not fit, late in a large insert, fails with the code and stores no row of it."""
        _create_wide(client)
        rows = b"".join(b"%d,0.5,x\n" % i for i in range(200_000))
        with pytest.raises(DatabaseError) as refused:
            client.raw_insert("t", ["a", "b", "s"], rows + b"not a number,0.5,x\n", fmt="CSV")
        assert refused.value.code in (6, 27, 72)
        assert client.query("SELECT count() FROM t").result_rows == [(0,)]

    def test_truncated_native_leaves_nothing(self, client: Client) -> None:
        """A Native body cut inside its last block fails and stores no row of it."""
        _create_wide(client)
        body = client.raw_query("SELECT number AS a, 0.5 AS b, 'x' AS s FROM numbers(300000)", fmt="Native")
        with pytest.raises(DatabaseError):
            client.raw_insert("t", ["a", "b", "s"], body[:-100], fmt="Native")
        assert client.query("SELECT count() FROM t").result_rows == [(0,)]

    def test_truncated_compression_leaves_nothing(self, client: Client) -> None:
        """A compressed body that lost its end fails and stores nothing."""
        _create_wide(client)
        rows = gzip.compress(b"".join(b"%d,0.5,x\n" % i for i in range(200_000)))
        with pytest.raises(DatabaseError):
            client.raw_insert("t", ["a", "b", "s"], rows[: len(rows) // 2], fmt="CSV", compression="gzip")
        assert client.query("SELECT count() FROM t").result_rows == [(0,)]

    def test_unknown_column_is_refused(self, client: Client) -> None:
        """An insert into a column the table lacks is refused."""
        _create_wide(client)
        with pytest.raises(DatabaseError):
            client.raw_insert("t", ["a", "nowhere"], b"1,2\n", fmt="CSV")

    def test_large_result_streams(self, client: Client) -> None:
        """Two million rows are read in blocks, all of them."""
        total = rows = 0
        with client.query_np_stream("SELECT number FROM numbers(2000000)") as blocks:
            for block in blocks:
                rows += len(block)
                total += int(block.sum())
        assert (rows, total) == (2_000_000, 1_999_999 * 1_000_000)

    def test_results_as_arrow_and_pandas(self, client: Client) -> None:
        """The trainer's ways of reading: Arrow tables and data frames, empty ones too."""
        table = client.query_arrow(
            "SELECT number AS n, toString(number) AS s FROM numbers(100000)", use_strings=True
        )
        assert table.num_rows == 100_000
        assert table.column("n")[99_999].as_py() == 99_999
        frame = client.query_df("SELECT number AS n FROM numbers(3)")
        assert list(frame["n"]) == [0, 1, 2]
        assert client.query("SELECT 1 AS a WHERE 0").result_rows == []
        assert client.query("SELECT 1 AS a LIMIT 0").column_names == ("a",)

    def test_numbered_ddl_can_run_twice(self, client: Client) -> None:
        """What migrations do: create, alter, describe and create again without an error."""
        for _ in range(2):
            client.command(
                "CREATE TABLE IF NOT EXISTS m (a UInt64, d Date) ENGINE = MergeTree PARTITION BY d ORDER BY a"
            )
            client.command(
                "ALTER TABLE m ADD COLUMN IF NOT EXISTS b LowCardinality(String) DEFAULT 'x' AFTER a"
            )
            client.command(
                "CREATE VIEW IF NOT EXISTS v AS SELECT a, b FROM m WHERE b = 'x' -- a comment; with signs '"
            )
        client.insert("m", [[1, DAY]], column_names=["a", "d"])
        assert client.query("SELECT * FROM v").result_rows == [(1, "x")]
        names = client.query(
            "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 'm'"
        )
        assert sorted(row[0] for row in names.result_rows) == ["a", "b", "d"]
        assert client.command("EXISTS TABLE m") == 1
        assert client.query("DESCRIBE TABLE m").row_count == 3

    def test_comments_and_format_words(self, client: Client) -> None:
        """Statements with comments, a semicolon at the end, strings full of SQL, a table and column called format."""
        client.command(
            "/* a /* nested */ ; */ CREATE TABLE format (format String) ENGINE = Memory -- done;\n"
        )
        client.command("INSERT INTO format (format) VALUES ('FORMAT Native')")
        assert client.query("SELECT format FROM format WHERE format = 'FORMAT Native'").result_rows == [
            ("FORMAT Native",)
        ]
        assert client.raw_query("SELECT 1 AS a, ';' AS b FORMAT JSONEachRow;") == b'{"a":1,"b":";"}\n'


def _create_wide(client: Client) -> None:
    client.command("CREATE TABLE t (a UInt64, b Float64, s String) ENGINE = MergeTree ORDER BY a")


def _assert_whole(client: Client) -> None:
    read = client.query("SELECT count(), sum(a), sum(b), uniqExact(s) FROM t").result_rows
    assert read == [(MILLION, 499_999_500_000, 249_999_750_000.0, MILLION)]


def _compressed(body: bytes, compression: str | None) -> bytes:
    """Several frames one after the other, as clickhouse-connect writes them."""
    pieces = [body[at : at + 3_000_000] for at in range(0, len(body), 3_000_000)]
    match compression:
        case "gzip":
            return b"".join(gzip.compress(piece, 1) for piece in pieces)
        case "lz4":
            import lz4.frame  # type: ignore[import-untyped,unused-ignore]

            return b"".join(lz4.frame.compress(piece) for piece in pieces)
        case "zstd":
            from backports import zstd

            return b"".join(zstd.compress(piece) for piece in pieces)
        case _:
            return body
