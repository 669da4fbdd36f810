"""Texts that no store should answer, by what they try; each is refused.

One a line; a line that starts with four spaces goes on with the one before.
"""

from __future__ import annotations

ATTACKS: dict[str, str] = {
    "files by function": """
SELECT * FROM read_csv('/etc/passwd')
SELECT * FROM read_csv_auto('/etc/passwd')
SELECT * FROM READ_TEXT('/etc/passwd')
SELECT * FROM read_blob('/etc/passwd')
SELECT * FROM read_parquet('x.parquet')
SELECT * FROM read_parquet(['a', 'b'])
SELECT * FROM parquet_scan('x')
SELECT * FROM parquet_metadata('x')
SELECT * FROM parquet_schema('x')
SELECT * FROM read_json('x.json')
SELECT * FROM read_json_auto('x.json')
SELECT * FROM read_ndjson('x.json')
SELECT * FROM read_ndjson_objects('x.json')
SELECT * FROM sniff_csv('x')
SELECT * FROM glob('*')
SELECT * FROM glob('/**')
SELECT * FROM read_duckdb('x.db')
SELECT * FROM sqlite_scan('x.db', 't')
SELECT * FROM postgres_scan('x', 'y', 'z')
SELECT * FROM mysql_query('x', 'y')
SELECT * FROM st_read('x')
SELECT * FROM iceberg_scan('x')
SELECT * FROM delta_scan('x')
SELECT * FROM arrow_scan(1, 2, 3)
SELECT * FROM pandas_scan(1)
SELECT * FROM python_map_function(1)
SELECT * FROM tensors, read_csv('/etc/passwd') r
SELECT * FROM tensors JOIN read_text('/etc/passwd') ON true
SELECT name, (SELECT content FROM read_text('/etc/passwd')) FROM tensors
SELECT name FROM tensors WHERE name IN (SELECT content FROM read_text('/etc/passwd'))
WITH x AS (SELECT * FROM read_csv('/etc/passwd')) SELECT * FROM x
WITH x AS (FROM read_csv('/etc/passwd')) SELECT * FROM x
SELECT read_text('/etc/passwd')
SELECT content FROM "read_text"('/etc/passwd')
SELECT * FROM main.read_csv('/etc/passwd')
SELECT * FROM system.main.read_csv('/etc/passwd')
SELECT * FROM tensors UNION SELECT * FROM read_csv('/etc/passwd')
SELECT * FROM LATERAL read_csv('/etc/passwd')
SELECT unnest(glob('*'))
FROM read_csv('/etc/passwd') SELECT *
""",
    "files as tables": """
SELECT * FROM '/etc/passwd'
SELECT * FROM 'x.csv'
SELECT * FROM "x.csv"
SELECT * FROM "/etc/passwd"
SELECT * FROM 'x.parquet' AS tensors
FROM 'x.json'
SELECT * FROM 'https://example.org/x.csv'
SELECT * FROM 's3://bucket/x'
SELECT * FROM tensors, 'x.csv'
SELECT * FROM tensors JOIN 'x.csv' USING (name)
SELECT * FROM (SELECT * FROM 'x.csv')
WITH x AS (SELECT * FROM 'x.csv') SELECT * FROM x
SELECT name FROM tensors WHERE EXISTS (FROM 'x.csv')
SELECT * FROM 'file:///etc/passwd'
SELECT * FROM ('x.csv')
SELECT * FROM x.csv
SELECT * FROM ['a.csv', 'b.csv']
SELECT * FROM $$x.csv$$
""",
    "settings and pragmas": """
PRAGMA database_list
PRAGMA enable_profiling
PRAGMA threads=99
SET memory_limit='1TB'
SET enable_external_access=true
SET VARIABLE x = 1
RESET memory_limit
SELECT current_setting('memory_limit')
SELECT getvariable('x')
SELECT getenv('HOME')
SELECT * FROM pragma_table_info('tensors')
SELECT * FROM pragma_database_size()
SELECT * FROM pragma_storage_info('tensors')
SELECT * FROM pragma_show('tensors')
SELECT * FROM pragma_version()
SELECT * FROM duckdb_settings()
SELECT * FROM duckdb_settings() WHERE name = 'memory_limit'
SELECT version()
SELECT current_user
SELECT session_user
SELECT user()
SELECT current_schema()
SELECT current_schemas(true)
SELECT current_database()
SELECT current_catalog
SELECT current_query()
SELECT current_role
SELECT in_search_path('a', 'b')
SELECT txid_current()
SELECT current_transaction_id()
SELECT current_connection_id()
SELECT inet_server_addr()
SELECT pg_typeof(1)
SELECT set_config('a', 'b', true)
SELECT enable_logging()
SELECT * FROM disable_optimizer()
SHOW TABLES
SHOW ALL TABLES
SHOW tensors
DESCRIBE tensors
SUMMARIZE tensors
EXPLAIN SELECT * FROM tensors
EXPLAIN ANALYZE SELECT * FROM tensors
USE memory
CALL pragma_version()
SELECT * FROM (DESCRIBE tensors)
SELECT * FROM (SUMMARIZE tensors)
SELECT * FROM (SHOW TABLES)
""",
    "changes": """
DROP TABLE tensors
DROP TABLE IF EXISTS tensors CASCADE
CREATE TABLE x (a INT)
CREATE TABLE x AS SELECT * FROM tensors
CREATE OR REPLACE VIEW tensors AS SELECT 1
CREATE TEMP TABLE x AS FROM tensors
CREATE SCHEMA s
CREATE SEQUENCE s
CREATE TYPE mood AS ENUM ('a')
CREATE INDEX i ON tensors (name)
INSERT INTO tensors VALUES (1)
INSERT INTO tensors SELECT * FROM tensors
INSERT OR REPLACE INTO tensors VALUES (1)
UPDATE tensors SET name = 'x'
DELETE FROM tensors
TRUNCATE tensors
ALTER TABLE tensors RENAME TO t
ALTER TABLE tensors ADD COLUMN x INT
MERGE INTO tensors USING versions ON true WHEN MATCHED THEN DELETE
COMMENT ON TABLE tensors IS 'x'
VACUUM
ANALYZE
CHECKPOINT
FORCE CHECKPOINT
BEGIN
BEGIN TRANSACTION
COMMIT
ROLLBACK
ABORT
PREPARE q AS SELECT 1
EXECUTE q
DEALLOCATE q
SELECT * INTO x FROM tensors
SELECT name INTO TEMP x FROM tensors
SELECT name FROM tensors FOR UPDATE
SELECT name FROM tensors FOR SHARE
WITH x AS (DELETE FROM tensors RETURNING *) SELECT * FROM x
WITH x AS (INSERT INTO tensors VALUES (1) RETURNING *) SELECT * FROM x
WITH x AS (UPDATE tensors SET name = 'x' RETURNING *) SELECT * FROM x
WITH x AS (DROP TABLE tensors) SELECT 1
WITH x AS MATERIALIZED (CREATE TABLE y AS SELECT 1) SELECT 1
WITH x AS (SELECT 1) DELETE FROM tensors
WITH x AS (SELECT 1) INSERT INTO tensors SELECT * FROM x
(DROP TABLE tensors)
(DELETE FROM tensors)
SELECT nextval('s')
SELECT currval('s')
SELECT setseed(0.5)
SELECT * FROM (DELETE FROM tensors RETURNING *)
SELECT (DROP TABLE tensors)
""",
    "attach, copy, install": """
ATTACH 'x.db'
ATTACH 'x.db' AS y (READ_ONLY)
ATTACH IF NOT EXISTS ':memory:' AS y
DETACH y
COPY tensors TO 'x.csv'
COPY (SELECT * FROM tensors) TO '/tmp/x' (FORMAT csv)
COPY tensors FROM 'x.csv'
COPY FROM DATABASE a TO b
EXPORT DATABASE 'x'
IMPORT DATABASE 'x'
INSTALL httpfs
INSTALL x FROM 'https://example.org'
FORCE INSTALL httpfs
LOAD httpfs
LOAD '/tmp/x.so'
UPDATE EXTENSIONS
CREATE SECRET s (TYPE S3)
DROP SECRET s
WITH x AS (COPY tensors TO 'x.csv') SELECT 1
WITH x AS (ATTACH 'x.db') SELECT 1
WITH x AS (LOAD httpfs) SELECT 1
CONNECT 'x'
""",
    "system tables": """
SELECT * FROM information_schema.tables
SELECT * FROM information_schema.columns
SELECT * FROM "information_schema"."tables"
SELECT * FROM tensors, information_schema.tables
SELECT * FROM tensors, LATERAL information_schema.tables
SELECT * FROM LATERAL information_schema.tables
SELECT * FROM tensors CROSS JOIN LATERAL (SELECT * FROM information_schema.tables) x
SELECT * FROM sqlite_master
SELECT * FROM sqlite_schema
SELECT * FROM pg_catalog.pg_tables
SELECT * FROM pg_tables
SELECT * FROM pg_class
SELECT * FROM pg_settings
SELECT * FROM duckdb_tables
SELECT * FROM duckdb_tables()
SELECT * FROM duckdb_columns()
SELECT * FROM duckdb_functions()
SELECT * FROM duckdb_secrets()
SELECT * FROM duckdb_logs
SELECT * FROM duckdb_memory()
SELECT * FROM duckdb_temporary_files()
SELECT * FROM duckdb_views
SELECT * FROM main.tensors
SELECT * FROM memory.main.tensors
SELECT * FROM system.information_schema.tables
SELECT * FROM temp.tensors
SELECT * FROM a.b.c.d
SELECT main.tensors.name FROM tensors
SELECT name FROM tensors WHERE EXISTS (SELECT 1 FROM information_schema.tables)
SELECT (SELECT count(*) FROM pg_class)
SELECT * FROM tensors__0
SELECT * FROM (FROM sqlite_master)
WITH x AS (SELECT * FROM duckdb_settings()) SELECT * FROM x
SELECT 1 UNION ALL WITH duckdb_views AS (SELECT 1) SELECT * FROM duckdb_views
SELECT 1 UNION ALL WITH pg_class AS (SELECT 1) (SELECT 1 FROM pg_class)
WITH duckdb_views AS (SELECT 1) EXECUTE IMMEDIATE 'x'
WITH x AS (FROM duckdb_views) EXECUTE IMMEDIATE 'DROP TABLE tensors'
WITH x AS (SELECT 1) CALL pragma_version()
WITH x AS (SELECT 1) COPY x TO 'y'
SELECT has_table_privilege('tensors', 'select')
SELECT col_description(1, 2)
SELECT pg_get_viewdef(1)
SELECT * FROM unknown
SELECT rowid FROM tensors
SELECT tensors.rowid FROM tensors
SELECT ctid FROM tensors
SELECT tensors FROM tensors
SELECT t FROM tensors t
SELECT struct_extract(t, 'name') FROM tensors t
""",
    "queries as text": """
SELECT * FROM query('SELECT 1')
SELECT * FROM query_table('tensors')
SELECT * FROM query_table(['tensors', 'versions'])
SELECT query('DROP TABLE tensors')
SELECT json_execute_serialized_sql('{}')
SELECT json_serialize_sql('SELECT 1')
SELECT json_deserialize_sql('{}')
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))
SELECT * FROM sql_auto_complete('SEL')
SELECT * FROM from_substrait('x')
SELECT invoke(x -> x, 1)
SELECT * FROM IDENTIFIER('tensors')
SELECT * FROM TABLE('tensors')
EXECUTE IMMEDIATE 'DROP TABLE tensors'
""",
    "stacked statements": """
SELECT name FROM tensors; DROP TABLE tensors
SELECT name FROM tensors; SELECT 1
SELECT 1; SELECT 2; SELECT 3
; SELECT 1
SELECT 1;;SELECT 2
SELECT 1; -- x⏎DROP TABLE tensors
SELECT name FROM tensors WHERE name = 'a'; DELETE FROM tensors --'
SELECT ';'; DROP TABLE tensors
SELECT name FROM tensors AS OF EPOCH 3; DROP TABLE tensors
SELECT 1 DROP TABLE tensors
SELECT name FROM tensors DROP TABLE tensors
BEGIN; SELECT 1; END
SELECT 1 GO SELECT 2
""",
    "comments and quotes": """
SELECT name FROM tensors /* no end
SELECT 'no end
SELECT "no end
SELECT $$no end
/* only a comment */
-- only a comment
SELECT/**/*/**/FROM/**/read_csv('x')
SELECT * FROM/*x*/'x.csv'
SELECT * FROM tensors --⏎; DROP TABLE x
SELECT 1 /* */ ; DROP TABLE tensors -- */
SELECT * FROM tensors /*!50000 UNION SELECT * FROM x */ ;DROP TABLE x
SELECT read_csv/* */('x')
SELECT `name` FROM tensors
SELECT [name] FROM [tensors]
SELECT E'a\\x41'
SELECT X'41'
SELECT B'01'
SELECT N'a'
SELECT U&'\\0041'
SELECT 'a' 'b'
SELECT '' UNION SELECT * FROM read_csv('x') --'
SELECT "read_text"('x')
SELECT sqlglot /* sqlglot.anonymous */ (1)
SELECT getenv('HOME') /* sqlglot.anonymous */
SELECT {{ name }} FROM tensors
{% if x %} SELECT 1 {% endif %}
SELECT $1
SELECT ?
SELECT :name
SELECT @name
SELECT @@version
SELECT %s
SELECT $name FROM tensors
""",
    "unicode": """
SELECT * FROM ｔensors
SELECT * FROM tensorѕ
ＳＥＬＥＣＴ 1
SELECT\u00a0* FROM\u00a0information_schema.tables
SELECT * FROM\u3000read_csv('x')
SELECT * FROM tensors\u200b
SELECT * FROM \u202etensors
SELECT * FROM "tensors\u0000"
SELECT '\u0000'
SELECT '\ud800'
SELECT name\u0007 FROM tensors
\ufeffDROP TABLE tensors
SELECT * FROM tensors；DROP TABLE tensors
SELECT * FROM tensors WHERE name = ‘x’; DROP TABLE tensors
SELECT * FROM İnformation_schema.tables
SELECT ｒead_csv('x')
SELECT READ_CſV('x')
SELECT ℓpad(name, 10, ' ') FROM tensors
SELECT \U0001f4a9 FROM tensors
SELECT namе FROM tensors
""",
    "macros and types": """
CREATE MACRO f(x) AS x
CREATE FUNCTION f(x) AS x
CREATE OR REPLACE TEMP MACRO f() AS TABLE SELECT 1
SELECT f(1)
SELECT CAST(name AS mood) FROM tensors
SELECT name::regclass FROM tensors
SELECT CAST('x' AS STRUCT(a INT))
SELECT CAST('x' AS MAP(INT, INT))
SELECT CAST('x' AS ENUM('a'))
SELECT CAST('x' AS BLOB)
SELECT CAST('x' AS UNION(a INT))
SELECT 'x'::information_schema.tables
SELECT CAST(1 AS INT[1000000000])
SELECT enum_range(NULL::mood)
SELECT cast_to_type(1, 'x')
SELECT CAST(1 AS SERIAL)
SELECT list_transform([1], x -> x)
SELECT list_transform([1], lambda x: x)
SELECT list_filter(shape, x -> x > 1) FROM tensors
SELECT list_reduce(shape, (a, b) -> a) FROM tensors
SELECT list_aggregate(shape, 'histogram') FROM tensors
SELECT list_aggr([1], 'getenv')
SELECT [x FOR x IN shape] FROM tensors
SELECT {'a': 1}
SELECT MAP {'a': 1}
SELECT struct_pack(a := 1)
SELECT row(1, 2)
SELECT name.upper() FROM tensors
SELECT ('x').repeat(1000000000)
SELECT name.lpad(1000000000, 'x') FROM tensors
SELECT COLUMNS('.*') FROM tensors
SELECT COLUMNS(*) FROM tensors
SELECT *COLUMNS('x') FROM tensors
SELECT #1 FROM tensors
SELECT name COLLATE NOCASE FROM tensors
SELECT quantile_cont(std, 0.5) WITHIN GROUP (ORDER BY std) FROM tensors
PIVOT tensors ON layer USING sum(std)
SELECT * FROM tensors PIVOT (sum(std) FOR layer IN ('a'))
UNPIVOT tensors ON std, mean
SELECT * FROM tensors UNPIVOT (v FOR n IN (std, mean))
SELECT * FROM tensors MATCH_RECOGNIZE (PATTERN (a) DEFINE a AS true)
SELECT * FROM tensors TABLESAMPLE 10%
SELECT * FROM tensors USING SAMPLE 10
SELECT * FROM tensors AT (VERSION => 3)
SELECT * FROM tensors FOR SYSTEM_TIME AS OF 3
SELECT * FROM tensors FOR VERSION AS OF 3
SELECT name FROM tensors POSITIONAL JOIN versions
SELECT name FROM tensors NATURAL JOIN versions
SELECT name FROM tensors CONNECT BY PRIOR name = layer
SELECT name FROM tensors LIMIT 10 PERCENT
SELECT name FROM tensors FETCH FIRST 3 ROWS ONLY
SELECT TOP 3 name FROM tensors
FROM tensors |> SELECT name
SELECT error('x')
SELECT write_log('x')
SELECT uuid()
""",
    "bombs": """
SELECT repeat('x', 1000000000)
SELECT repeat(name, nbytes) FROM tensors
SELECT repeat('x', 1001)
SELECT repeat('x', -1001)
SELECT repeat(repeat('x', 1000), 1e9)
SELECT lpad(name, 1000000000, 'x') FROM tensors
SELECT rpad(name, nbytes, 'x') FROM tensors
SELECT * FROM range(1000000000000)
SELECT * FROM range(0, 1000000000000, 2)
SELECT * FROM generate_series(1, 9223372036854775807)
SELECT range(nbytes) FROM tensors
SELECT unnest(range(1000000000)) FROM tensors
SELECT generate_series(-1000000000, 1000000000)
SELECT range(1, 10, 0.00001)
SELECT range(DATE '0001-01-01', DATE '9999-01-01', INTERVAL 1 SECOND)
SELECT list_resize([1], 1000000000)
SELECT array_resize([1], 1000000000)
SELECT printf('%1000000000d', 1)
SELECT format('{:1000000000}', 1)
SELECT bitstring('1', 1000000000)
SELECT bar(1, 0, 1, 1000000000)
SELECT levenshtein(name, name) FROM tensors
SELECT editdist3(name, name) FROM tensors
SELECT damerau_levenshtein(name, name) FROM tensors
SELECT jaccard(name, name) FROM tensors
SELECT jaro_winkler_similarity(name, name) FROM tensors
SELECT hamming(name, name) FROM tensors
SELECT replace(name, 'a', name) FROM tensors
SELECT replace(name, 'a', repeat('b', 1000)) FROM tensors
SELECT replace(name, 'a',
    'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb') FROM
    tensors
SELECT replace(replace(name, 'a', 'aaaaaaaaaaaaaaaaaaaa'), 'a', 'aaaaaaaaaaaaaaaaaaaaaaa') FROM
    tensors
SELECT regexp_replace(regexp_replace(name, '', 'aaaaaaaaaaaaaaaaaaaa', 'g'), '',
    'aaaaaaaaaaaaaaaa', 'g') FROM tensors
SELECT regexp_replace(name, 'a', name, 'g') FROM tensors
SELECT 0xFFFFFFFFFFFFFFFF
SELECT 0b1111
SELECT 1x
SELECT sleep(100)
SELECT pg_sleep(100)
SELECT sleep_ms(100)
SELECT (((((((((((((((((((((((((((((((((((((((((1)))))))))))))))))))))))))))))))))))))))))
SELECT - - - - - - - - - - - - - - - - - - - - 1
SELECT NOT NOT NOT NOT NOT NOT NOT NOT NOT NOT NOT NOT NOT NOT NOT NOT NOT NOT true
""",
    "wrong moments": """
SELECT name FROM tensors AS OF
SELECT name FROM tensors AS OF EPOCH
SELECT name FROM tensors AS OF 3
SELECT name FROM tensors AS OF EPOCH -1
SELECT name FROM tensors AS OF EPOCH 1.5
SELECT name FROM tensors AS OF EPOCH 1e3
SELECT name FROM tensors AS OF EPOCH '3'
SELECT name FROM tensors AS OF EPOCH three
SELECT name FROM tensors AS OF EPOCH (SELECT 1)
SELECT name FROM tensors AS OF EPOCH 99999999999999999999999999
SELECT name FROM tensors AS OF LSN 'x'
SELECT name FROM tensors AS OF LSN 9223372036854775808
SELECT name FROM tensors AS OF TAG best
SELECT name FROM tensors AS OF TAG ''
SELECT name FROM tensors AS OF TAG "best"
SELECT name FROM tensors AS OF TIMESTAMP 'yesterday'
SELECT name FROM tensors AS OF TIMESTAMP ''
SELECT name FROM tensors AS OF TIMESTAMP 3
SELECT name FROM tensors AS OF TIMESTAMP '2026-13-01'
SELECT name FROM tensors AS OF HEAD
SELECT name FROM tensors AS OF 'x'
SELECT name FROM tensors AS OF EPOCH 3 AS OF EPOCH 3
SELECT name FROM tensors AS OF EPOCH 3 t AS OF EPOCH 4
SELECT name AS OF EPOCH 3 FROM tensors
SELECT name FROM tensors WHERE name AS OF EPOCH 3 = 'x'
SELECT name FROM tensors WHERE type = 'x' AS OF EPOCH 3 ORDER BY name
SELECT name FROM (SELECT name FROM tensors) x AS OF EPOCH 3 WHERE name = 'x'
WITH x AS (SELECT 1 AS a) SELECT a FROM x AS OF EPOCH 3
SELECT 1 AS OF EPOCH 3
AS OF EPOCH 3
AS OF EPOCH 3 SELECT name FROM tensors
SELECT name FROM tensors, versions AS OF EPOCH 3
SELECT name FROM tensors EXCEPT SELECT name FROM tensors AS OF EPOCH 3
SELECT name FROM tensors AS OF EPOCH 3 AS OF LSN 4 AS OF TAG 'x'
""",
    "nonsense": """
SELECT
SELECT FROM tensors
SELECT * FROM
FROM
WITH
WITH x SELECT 1
SELECT name FROM tensors WHERE
SELECT name FROM tensors ORDER
SELECT name, FROM tensors GROUP
SELECT name FROM tensors JOIN
SELECT name FROM tensors LIMIT
SELECT ) FROM tensors
SELECT ( FROM tensors
SELECT name FROM tensors WHERE name LIKE enc%
SELECT name FROM tensors WHERE name = model.0.weight
tensors
42
'x'
SELECT tensors WHERE
SELECT tensors, versions
SELECT tensors.name
SELECT tensors WHERE name = model.0.weight
SELECT tensors WHERE typ = weights
SELECT tensors WHERE weights = type
SELECT tensors ORDER BY nothing
SELECT tensor WHERE type = weights
SELECT name WHERE type = weights
SELECT name FROM tensors WHERE type LIKE
SELECT max(*) FROM tensors
SELECT * REPLACE (upper(name)) FROM tensors
SELECT * REPLACE (name) FROM tensors
SELECT tensors.name FROM tensors JOIN versions
SELECT tensors.name FROM tensors INNER JOIN versions
SELECT tensors.name FROM tensors LEFT JOIN versions
SELECT tensors.name FROM tensors FULL JOIN versions WHERE true
SELECT tensors.name FROM tensors SEMI JOIN versions
SELECT tensors.name FROM tensors JOIN versions USING ()
SELECT tensors.name FROM (tensors LEFT JOIN versions)
SELECT tensors.name FROM tensors JOIN versions v JOIN metrics m ON true
SELECT tensors JOIN versions USING (name)
SELECT tensors JOIN versions USING ()
SELECT 1 JOIN versions ON true
SELECT * RENAME (name) FROM tensors
SELECT count(*, *) FROM tensors
SELECT name FROM tensors t(a, b)
SELECT name FROM tensors, tensors
SELECT name FROM tensors a, versions a
SELECT x.name FROM tensors
SELECT tensors.name FROM tensors t
SELECT a.* FROM tensors b
SELECT name FROM tensors JOIN versions USING (nothing)
SELECT * EXCLUDE (nothing) FROM tensors
""",
}


def attack_texts() -> list[str]:
    """Return the texts of all kinds, one after another; ⏎ is a new line in one."""
    lines = "\n".join(text.strip("\n").replace("\n    ", " ") for text in ATTACKS.values())
    return [line.replace("⏎", "\n") for line in lines.split("\n")]
