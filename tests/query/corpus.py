"""Queries that work, written as plain SQL, so that the engine can answer them as they stand.

One a line; a line that starts with four spaces goes on with the one before.
"""

from __future__ import annotations

PLAIN = (
    """
SELECT name, std FROM tensors WHERE layer = 'conv1' ORDER BY name, std
SELECT Name, TYPE FROM Tensors
SELECT "name", tensors.type, Tensors."layer" FROM "tensors"
SELECT t.name AS n, t.epoch + 1 AS following FROM tensors t WHERE n LIKE 'conv%' ORDER BY n
SELECT COUNT(*) FROM versions
SELECT COUNT(*) AS n, COUNT(DISTINCT name), MIN(epoch), MAX(epoch) FROM versions
SELECT layer, COUNT(*) AS n FROM tensors GROUP BY layer HAVING COUNT(*) > 3 ORDER BY n DESC, layer
SELECT layer, type, SUM(nbytes) FROM tensors GROUP BY ALL ORDER BY ALL
SELECT layer, type, SUM(nbytes) FROM tensors GROUP BY ROLLUP (layer, type)
SELECT layer, type, SUM(nbytes) FROM tensors GROUP BY CUBE (layer, type)
SELECT layer, SUM(nbytes) FROM tensors GROUP BY GROUPING SETS ((layer), ())
SELECT a.name, a.std - b.std FROM tensors a JOIN versions b USING (name) WHERE a.epoch = b.epoch
SELECT a.name FROM tensors a JOIN versions b ON a.name = b.name AND a.epoch < b.epoch
SELECT a.name, b.source FROM tensors a LEFT JOIN relationships b ON a.name = b.source
SELECT a.name, b.source FROM tensors a FULL OUTER JOIN relationships b ON a.name = b.target
SELECT a.name FROM tensors a SEMI JOIN versions b USING (name)
SELECT a.name FROM tensors a ANTI JOIN metrics b USING (name)
SELECT a.name, m.value FROM tensors a ASOF JOIN metrics m ON a.name = m.name AND a.time >= m.time
SELECT a.name, b.kind FROM tensors a, relationships b WHERE a.name = b.source
SELECT a.name, b.kind FROM tensors a CROSS JOIN segments b
SELECT name, source FROM (tensors JOIN relationships USING (epoch))
SELECT name FROM tensors UNION SELECT name FROM versions ORDER BY name
SELECT name FROM tensors UNION ALL SELECT name FROM versions
SELECT name, epoch FROM tensors UNION BY NAME SELECT epoch, name FROM versions
SELECT name FROM tensors EXCEPT SELECT source FROM relationships
SELECT name FROM tensors INTERSECT (SELECT source FROM relationships) ORDER BY 1 LIMIT 2
(SELECT name FROM tensors ORDER BY name LIMIT 1) UNION ALL (SELECT kind FROM segments)
WITH big AS (SELECT name, nbytes FROM tensors WHERE nbytes > 1) SELECT name FROM big
WITH a AS (SELECT name FROM tensors), b AS (SELECT name FROM a) SELECT COUNT(*) FROM b
WITH a(n, e) AS (SELECT name, epoch FROM versions) SELECT n, MAX(e) FROM a GROUP BY n
WITH tensors AS (SELECT source AS name FROM relationships) SELECT name FROM tensors
WITH x AS MATERIALIZED (SELECT name FROM tensors) SELECT name FROM x
WITH v AS (VALUES (1, 'a'), (2, 'b')) SELECT * FROM v
WITH RECURSIVE r(n, d) AS (SELECT 'conv1', 0 UNION SELECT target, d + 1 FROM relationships JOIN
    r ON source = n WHERE d < 4) SELECT n, d FROM r
WITH RECURSIVE k(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM k WHERE i < 5) SELECT SUM(i) FROM k
SELECT name FROM tensors WHERE name IN (SELECT name FROM versions WHERE epoch > 2)
SELECT name FROM tensors WHERE (name, epoch) IN (SELECT name, MAX(epoch) FROM versions GROUP BY
    name)
SELECT name FROM tensors t WHERE EXISTS (SELECT 1 FROM versions v WHERE v.name = t.name AND
    v.lsn > t.lsn)
SELECT name FROM tensors t WHERE NOT EXISTS (SELECT 1 FROM metrics m WHERE m.name = t.name)
SELECT name, (SELECT MAX(v.epoch) FROM versions v WHERE v.name = t.name) AS newest FROM tensors t
SELECT name FROM tensors WHERE std > (SELECT AVG(std) FROM tensors)
SELECT name FROM tensors WHERE epoch = ANY (SELECT epoch FROM metrics)
SELECT name FROM tensors WHERE epoch >= ALL (SELECT epoch FROM metrics)
SELECT s.n, s.m FROM (SELECT name AS n, MAX(std) AS m FROM tensors GROUP BY name) s WHERE s.m > 1
SELECT n FROM (SELECT name AS n FROM tensors) WHERE n <> 'layer'
SELECT x.name FROM tensors a, (SELECT a.name) x
SELECT CASE WHEN std > 1 THEN 'wide' WHEN std IS NULL THEN NULL ELSE 'narrow' END FROM tensors
SELECT CASE type WHEN 'layer' THEN 1 ELSE 0 END AS is_layer FROM tensors
SELECT IF(std > 1, 'wide', 'narrow'), COALESCE(layer, 'none'), NULLIF(type, 'layer') FROM tensors
SELECT CAST(epoch AS VARCHAR), epoch::DOUBLE, TRY_CAST(name AS INTEGER), std::DECIMAL(10, 2)
    FROM tensors
SELECT shape::VARCHAR, shape::BIGINT[], '2026-01-01'::DATE, time::DATE FROM tensors
SELECT name, ROW_NUMBER() OVER (PARTITION BY layer ORDER BY std DESC, lsn, time) FROM tensors
SELECT name FROM tensors QUALIFY ROW_NUMBER() OVER (PARTITION BY layer ORDER BY time) = 1
SELECT time, SUM(std) OVER w, AVG(std) OVER w FROM tensors WINDOW w AS (PARTITION BY layer ORDER
    BY time)
SELECT time, SUM(std) OVER (ORDER BY time ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) FROM versions
SELECT time, SUM(std) OVER (ORDER BY epoch RANGE BETWEEN 1 PRECEDING AND 1 FOLLOWING) FROM versions
SELECT time, LAG(std) OVER (ORDER BY time), LEAD(std, 2, 0) OVER (ORDER BY time) FROM versions
SELECT time, LAG(std IGNORE NULLS) OVER (ORDER BY time), LAST_VALUE(std) OVER (ORDER BY time)
    FROM versions
SELECT time, RANK() OVER (ORDER BY epoch), NTILE(3) OVER (ORDER BY time) FROM versions
SELECT time, COUNT(*) FILTER (WHERE epoch > 1) OVER (ORDER BY time) FROM versions
SELECT SUM(nbytes) FILTER (WHERE type = 'layer'), COUNT(*) FILTER (epoch > 1) FROM tensors
SELECT STRING_AGG(name, ', ' ORDER BY time), LIST(epoch ORDER BY time DESC), ARRAY_AGG(DISTINCT
    epoch ORDER BY epoch) FROM tensors
SELECT ARG_MAX(name, time), ARG_MIN(name, time), MAX(std, 2), MEDIAN(std), MODE(epoch),
    QUANTILE_CONT(std, 0.9), QUANTILE_CONT(std, [0.1, 0.9]) FROM tensors
SELECT STDDEV(std), VAR_POP(std), CORR(std, mean), REGR_SLOPE(std, mean), KURTOSIS(std),
    SKEWNESS(std) FROM tensors
SELECT name FROM tensors ORDER BY time DESC NULLS LAST LIMIT 3 OFFSET 2
SELECT name FROM tensors ORDER BY time LIMIT 2 + 1
SELECT DISTINCT layer FROM tensors
SELECT DISTINCT ON (layer) layer, name FROM tensors ORDER BY layer, time
SELECT * FROM (VALUES (1, 'a'), (2, 'b')) v(number, word) WHERE number BETWEEN 1 AND 1
VALUES (1, 2), (3, 4)
SELECT name FROM tensors WHERE name BETWEEN 'a' AND 'm' AND epoch NOT BETWEEN 1 AND 2
SELECT name FROM tensors WHERE name LIKE 'c%1' OR name ILIKE 'CONV_' OR name NOT LIKE '%e%'
SELECT name FROM tensors WHERE name LIKE 'a!_b' ESCAPE '!' OR name SIMILAR TO 'conv[0-9]' OR
    name GLOB 'c*'
SELECT name FROM tensors WHERE name ~ 'v[12]$' OR name !~~ 'conv%' OR name ^@ 'lay'
SELECT name FROM tensors WHERE epoch IN (1, 2, 3) AND type NOT IN ('a', 'b') AND layer IS NOT NULL
SELECT name FROM tensors WHERE layer IS DISTINCT FROM name AND NOT (epoch = 1 OR std = 1)
SELECT name FROM tensors WHERE epoch IS NULL OR std ISNULL OR (std > 1) IS TRUE
SELECT shape[1], shape[-1], shape[ndim], shape[1:2], shape[ndim + 1], [1, 2, 3][2] FROM tensors
SELECT LIST_SUM(shape), LIST_MAX(shape), LEN(shape), LIST_SORT(shape, 'DESC'),
    LIST_CONTAINS(shape, 3), LIST_CONCAT(shape, [1]) FROM tensors
SELECT name, UNNEST(shape) AS extent FROM tensors
SELECT t.name, u.extent FROM tensors t, UNNEST(t.shape) u(extent)
SELECT r.x, t.name FROM RANGE(3) r(x) JOIN tensors t ON t.epoch = r.x
SELECT * FROM GENERATE_SERIES(1, 10, 3)
SELECT g FROM RANGE(2) g
SELECT 1 + 2 * 3 - 4 / 2, 7 // 2, 7 % 3, 2 ^ 3, 2 ** 3, -epoch, +epoch, ~epoch, epoch << 1,
    epoch >> 1, epoch & 1, epoch | 2 FROM versions
SELECT -(-epoch), - -epoch, (1 - (2 - 3)), NOT NOT is_deleted, 2 - -3, 1 - (2 + 3) * 4 FROM versions
SELECT name || '/' || dtype, 'it''s', '"', '\\', 'a%b', 'ü€𝄞', '' FROM versions
SELECT 1e3, 1.5, .5, 5., 1_000, 123456789012345678901234567890, TRUE, NULL, -0.0
SELECT EXTRACT(HOUR FROM time), EXTRACT(epoch FROM time), DATE_TRUNC('day', time),
    DATE_PART('month', time), STRFTIME(time, '%Y-%m-%d %H'), EPOCH(time), EPOCH_MS(time) FROM
    versions
SELECT time + INTERVAL 1 DAY, time - INTERVAL '3' HOUR, time + INTERVAL (epoch) HOURS, INTERVAL
    '1 day 2 hours', time - TIMESTAMP '2026-01-01 00:00:00', DATE '2026-01-01' FROM versions
SELECT DATE_DIFF('hour', TIMESTAMP '2026-01-01', time), DATE_ADD(time, INTERVAL 1 DAY),
    TIME_BUCKET(INTERVAL 6 HOUR, time), YEAR(time), DAYNAME(time), LAST_DAY(time) FROM versions
SELECT TRIM(name), TRIM(BOTH 'c' FROM name), TRIM(LEADING 'c' FROM name), TRIM(TRAILING '1' FROM
    name), TRIM(name, 'c') FROM tensors
SELECT SUBSTRING(name, 2, 3), SUBSTRING(name FROM 2 FOR 3), SUBSTRING(name FROM 2), SUBSTR(name,
    2), name[2:3], POSITION('o' IN name) FROM tensors
SELECT UPPER(name), LENGTH(name), REVERSE(name), LEFT(name, 2), RIGHT(name, 2), SPLIT_PART(name,
    '.', 1), REPLACE(name, 'conv', 'c'), CONTAINS(name, 'v'), CONCAT(name, 1, NULL),
    CONCAT_WS('-', name, type) FROM tensors
SELECT REGEXP_MATCHES(name, '^c'), REGEXP_EXTRACT(name, '([a-z]+)([0-9])', 2),
    REGEXP_REPLACE(name, '[0-9]+', '#', 'g'), REGEXP_FULL_MATCH(name, 'conv.'),
    STRING_SPLIT(name, '.') FROM tensors
SELECT LPAD(name, 10, ' '), RPAD(name, 10, '.'), REPEAT('ab', 3), FORMAT_BYTES(nbytes),
    MD5(name) FROM tensors
SELECT ROUND(std, 1), FLOOR(std), CEIL(std), ABS(-std), SQRT(std), LN(std + 1), LOG(std + 1),
    LOG2(std + 1), EXP(std), POW(std, 2), SIGN(std), TRUNC(std), GREATEST(std, mean), LEAST(std,
    1), ISNAN(std), PI(), MOD(epoch, 2) FROM tensors
SELECT detail->>'a', detail->'a', detail->>'$.a', detail->>'$.b[0].c', JSON_EXTRACT(detail,
    '$.a'), JSON_EXTRACT_STRING(detail, '$.a'), JSON_VALID(detail) FROM events WHERE detail LIKE
    '{%'
SELECT tensors, nbytes FROM checkpoints WHERE NOT interrupted AND loss < 1 ORDER BY step
SELECT lake, AVG(kappa), SUM(alpha) FROM splats GROUP BY lake ORDER BY lake
SELECT name, value FROM metrics WHERE name = 'conv1' ORDER BY step, time
SELECT kind, SUM(nbytes) FROM segments GROUP BY kind
SELECT "odd-key", note, "Note", lr FROM tensors
SELECT "name" AS "a ""quoted"" name", epoch "two words" FROM tensors
SELECT name /* a comment; DROP TABLE tensors */ FROM tensors -- and one more
SELECT name FROM tensors AS t WHERE t.epoch = 1;
FROM versions SELECT name, epoch
SELECT ALL name FROM tensors LIMIT ALL
SELECT name FROM tensors EXCEPT ALL SELECT name FROM metrics
SELECT name FROM tensors INTERSECT ALL SELECT name FROM versions
SELECT name FROM tensors UNION DISTINCT SELECT name FROM versions
SELECT time, SUM(std) OVER (ORDER BY time ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING EXCLUDE
    CURRENT ROW) FROM versions
SELECT time, SUM(std) OVER (ORDER BY epoch GROUPS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM versions
SELECT time, SUM(std) OVER (ORDER BY time ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED
    FOLLOWING) FROM versions
SELECT time, NTH_VALUE(std, 2) OVER (ORDER BY time), FIRST_VALUE(std ORDER BY lsn) OVER () FROM
    versions
SELECT layer, COUNT(DISTINCT name) FILTER (WHERE epoch > 1) FROM tensors GROUP BY layer
SELECT layer, type, GROUPING(layer) FROM tensors GROUP BY layer, ROLLUP (type)
SELECT name FROM tensors WHERE name NOT IN (SELECT name FROM metrics WHERE epoch > 3)
SELECT name, epoch FROM tensors ORDER BY epoch DESC, name ASC NULLS FIRST LIMIT 4
SELECT t.name FROM tensors AS t INNER JOIN versions AS v USING (name, epoch)
SELECT t.name, v.lsn FROM tensors t RIGHT JOIN versions v ON t.lsn = v.lsn AND t.epoch > 2
WITH x AS NOT MATERIALIZED (SELECT name FROM tensors) SELECT a.name FROM x a, x b WHERE a.name =
    b.name
WITH x AS (WITH y AS (SELECT name FROM tensors) SELECT name FROM y) SELECT name FROM x
SELECT name FROM (WITH y AS (SELECT name FROM tensors) SELECT name FROM y)
SELECT t.name FROM tensors t WHERE t.epoch = (SELECT MAX(epoch) FROM versions WHERE name = t.name)
SELECT t.name FROM tensors t, (SELECT v.name AS n FROM versions v WHERE v.epoch = t.epoch) s
    WHERE s.n = t.name
SELECT 1
SELECT e: epoch, n: name FROM tensors
""".strip()
    .replace("\n    ", " ")
    .splitlines()
)

# What binds tighter: the tree that was checked has to be the one that the engine sees.
ORDERS = (
    """
SELECT -2 ^ 2, 2 ^ 3 ^ 2, 2 * 3 ^ 2, 2 ^ -1, -epoch ** 2, (-2) ^ 2, 2 ** 3 ** 2 FROM versions
SELECT 2 - 3 - 4, 100 / 10 / 2, 7 % 4 * 2, 2 * 7 % 4, 7 // 2 * 2, 100 / 10 * 2, 1 + 2 // 2, 5 -
    -1
SELECT 1 << 2 + 3, 1 + 2 << 3, 6 & 3 | 8, 1 | 2 & 3, 5 & 4 = 4, ~1 + 2, - ~1, ~ -1, - -1, - + 1,
    12 >> 1 << 2
SELECT 'x' || 1 + 2, 1 || 'x', 'a' || 'b' = 'ab', 'a' || 'b' || 'c' LIKE 'a%'
SELECT -1::DOUBLE, - '1'::INT, 1 + '2'::INT * 3, '1' || 2::VARCHAR, -epoch::DOUBLE FROM
    versions
SELECT NOT epoch = 1, NOT epoch IS NULL, NOT epoch = 1 AND std > 1, NOT (epoch = 1 AND std > 1)
    FROM versions
SELECT epoch = 1 OR std > 1 AND mean > 1, (epoch = 1 OR std > 1) AND mean > 1 FROM versions
SELECT NOT name LIKE 'c%', name NOT LIKE 'c%', name LIKE 'c' || '%', NOT name ~ 'c' FROM
    versions
SELECT name || 'x' ~ 'x$', (name ~ 'c') = true, name ^@ 'c' AND true, name || 'a' ^@ 'c' FROM
    versions
SELECT epoch BETWEEN 1 AND 2 AND std > 1, epoch + 1 BETWEEN 1 AND 1 + 1, NOT epoch BETWEEN 1 AND
    2 FROM versions
SELECT epoch IN (1, 2) = true, NOT epoch IN (1, 2), epoch + 1 IN (1, 2), epoch NOT IN (1, 2) OR
    std > 1 FROM versions
SELECT epoch IS NULL = false, epoch = 1 IS TRUE, epoch IS NOT NULL AND std IS NULL, (epoch < 2)
    = true FROM versions
SELECT epoch IS DISTINCT FROM 1 AND std > 1, epoch IS NOT DISTINCT FROM 1 OR std > 1, epoch + 1
    IS DISTINCT FROM 2 FROM versions
SELECT (detail->>'a') = '1', detail->'a'->'b', LENGTH(detail->>'a'), (detail->>'a') || 'x', NOT
    (detail->>'a') = '1'
    FROM events WHERE detail LIKE '{%'
SELECT shape[1] + 1, -shape[1], (shape)[1], shape[1] * shape[2], shape[1 + 1], ([1, 2] ||
    shape)[1] FROM tensors
SELECT CASE WHEN epoch = 1 THEN 2 END + 1, CASE epoch WHEN 1 THEN 'a' ELSE 'b' END || 'c' FROM
    versions
SELECT INTERVAL 1 DAY * 2, time + INTERVAL 1 DAY > time, time - INTERVAL 2 HOUR - INTERVAL 1
    HOUR FROM versions
SELECT (1 = 1) = true, 1 < 2, 1 <> 2, 1 != 2, 1 <= 2 AND 2 >= 1, (3 > 2) = true
SELECT name FROM tensors UNION SELECT source FROM relationships INTERSECT SELECT name FROM
    versions
SELECT name FROM tensors EXCEPT SELECT name FROM metrics UNION ALL SELECT kind FROM segments
(SELECT name FROM tensors UNION SELECT source FROM relationships) INTERSECT SELECT name FROM
    metrics
SELECT name FROM tensors EXCEPT (SELECT name FROM metrics UNION ALL SELECT 'a.b')
SELECT COUNT(*) FROM tensors a JOIN versions b ON a.epoch = b.epoch AND a.name = b.name OR a.lsn
    < 1
SELECT COUNT(*) FROM tensors a, versions b JOIN metrics c ON b.epoch = c.epoch WHERE a.epoch =
    b.epoch
SELECT COUNT(*) FROM tensors a LEFT JOIN (versions b JOIN metrics c USING (epoch)) ON a.epoch =
    c.step
SELECT COUNT(*) FROM tensors a LEFT JOIN versions b JOIN metrics c ON b.epoch = c.epoch ON
    a.epoch = b.epoch
SELECT a.name, u.x FROM tensors a, UNNEST(a.shape) u(x), metrics m WHERE m.epoch = u.x
SELECT SUM(epoch) FILTER (WHERE std > 1) OVER (ORDER BY time) + 1 FROM versions
SELECT -SUM(epoch), SUM(-epoch), SUM(epoch) / COUNT(*), SUM(epoch + 1) * 2 FROM versions
SELECT (SELECT MAX(epoch) FROM metrics) + 1, 1 + (SELECT MIN(epoch) FROM metrics) * 2
SELECT EXISTS (SELECT 1 FROM metrics WHERE epoch > 100) OR true, NOT EXISTS (SELECT 1 FROM
    metrics)
SELECT epoch > ANY (SELECT epoch FROM metrics) AND true, NOT epoch = ANY (SELECT epoch FROM
    metrics) FROM versions
""".strip()
    .replace("\n    ", " ")
    .splitlines()
)

STARS = (
    """
SELECT * FROM segments
FROM metrics
SELECT m.* FROM metrics m
SELECT * EXCLUDE (lsn, time) FROM metrics
SELECT * REPLACE (upper(name) AS name) FROM metrics
SELECT * RENAME (value AS v) FROM metrics
SELECT m.*, r.* FROM metrics m JOIN relationships r USING (epoch)
SELECT * FROM metrics JOIN relationships USING (epoch)
SELECT * FROM (SELECT * FROM metrics) WHERE value > 1
SELECT *, value * 2 FROM metrics
SELECT COUNT(*) FROM (SELECT DISTINCT * FROM segments)
SELECT norm, * FROM splats
""".strip()
    .replace("\n    ", " ")
    .splitlines()
)
