"""The functions that a query may call, by the engine's names, and why others are left out.

What is not listed is refused, so a new version of the engine opens no new door. Left out is

- what reaches outside: files, settings, variables, the catalogue, other queries given as text;
- what changes something: sequences, seeds, logs;
- what makes much out of little: the sizes of lpad, rpad, repeat, range and generate_series must be
  numbers written in the text, and the replacements of replace and regexp_replace short texts,
  because these build their result beside the engine's memory limit;
- what takes quadratic time on one value, where no timer can interrupt it (levenshtein and others);
- what calls a function by name or a lambda (list_aggregate, list_transform, list_reduce).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlglot import exp

from mldb.query.messages import did_you_mean, shown_word

_AGGREGATES: Final = """
any_value approx_count_distinct approx_quantile arbitrary arg_max arg_min argmax argmin array_agg
avg bit_and bit_or bit_xor bool_and bool_or corr count count_if countif covar_pop covar_samp entropy
favg first fsum geomean geometric_mean group_concat grouping histogram kahan_sum kurtosis
kurtosis_pop last list listagg mad max max_by mean median min min_by mode product quantile
quantile_cont quantile_disc regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope
regr_sxx regr_sxy regr_syy sem skewness stddev stddev_pop stddev_samp string_agg sum sumkahan
var_pop var_samp variance
"""
_WINDOWS: Final = """
cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
"""
_NUMBERS: Final = """
abs acos acosh asin asinh atan atan2 atanh bit_count cbrt ceil ceiling cos cosh cot degrees divide
even exp factorial fdiv floor fmod gamma gcd greatest greatest_common_divisor isfinite isinf isnan
lcm least least_common_multiple lgamma ln log log10 log2 mod nextafter pi pow power radians random
round round_even sign signbit sin sinh sqrt tan tanh trunc xor
"""
_CHOICES: Final = "coalesce if ifnull nullif typeof"
_TEXTS: Final = """
ascii bin bit_length char_length character_length chr concat concat_ws contains ends_with
formatreadablesize format_bytes hex instr lcase left length lower lpad ltrim md5 nfc_normalize ord
parse_filename position prefix regexp_extract regexp_extract_all regexp_full_match regexp_matches
regexp_replace regexp_split_to_array repeat replace reverse right rpad rtrim sha256 split split_part
starts_with str_split str_split_regex string_split string_split_regex string_to_array strip_accents
strlen strpos substr substring suffix to_base translate trim ucase unicode upper
"""
_TIMES: Final = """
age date_add date_diff date_part date_sub date_trunc datediff datepart datesub datetrunc day dayname
dayofmonth dayofweek dayofyear epoch epoch_ms epoch_ns epoch_us get_current_timestamp hour isodow
isoyear last_day make_date make_time make_timestamp microsecond millisecond minute month monthname
now quarter second strftime strptime time_bucket to_days to_hours to_microseconds to_milliseconds
to_minutes to_months to_seconds to_timestamp to_weeks to_years today try_strptime week weekday
weekofyear year yearweek
"""
_LISTS: Final = """
array_append array_cat array_concat array_contains array_distinct array_extract array_has
array_has_all array_has_any array_indexof array_intersect array_length array_position array_prepend
array_reverse array_reverse_sort array_slice array_sort array_to_string array_unique flatten
generate_series len list_any_value list_append list_avg list_bool_and list_bool_or list_cat
list_concat list_contains list_cosine_distance list_cosine_similarity list_count list_distance
list_distinct list_dot_product list_element list_extract list_first list_grade_up list_has
list_has_all list_has_any list_indexof list_inner_product list_intersect list_last list_max
list_median list_min list_mode list_position list_prepend list_product list_reverse
list_reverse_sort list_select list_slice list_sort list_stddev_pop list_stddev_samp list_string_agg
list_sum list_unique list_value list_var_pop list_var_samp list_where range unnest
"""
_JSON: Final = """
json json_array_length json_contains json_exists json_extract json_extract_path
json_extract_path_text json_extract_string json_keys json_type json_valid json_value
"""
FUNCTIONS: Final = frozenset(
    " ".join(
        (_AGGREGATES, _WINDOWS, _NUMBERS, _CHOICES, _TEXTS, _TIMES, _LISTS, _JSON),
    ).split()
)
TABLE_FUNCTIONS: Final = ("range", "generate_series")

_REASONS: Final = (
    (
        "read_ glob parquet_ csv sniff_ st_read sqlite_ postgres_ mysql_ arrow_scan pandas_scan "
        "python_map seq_scan index_scan iceberg_ delta_ write_ copy_ export_ import_ load_",
        "it reaches files",
    ),
    (
        "getenv current_ in_search_path version pragma_ duckdb_ pg_ has_ inet_ txid_ user session_ "
        "database_ metadata_info show_ test_ which_secret getvariable col_description obj_desc "
        "shobj_ enable_ disable_ checkpoint force_checkpoint sql_auto_complete collations",
        "it reads or sets what is not in the store",
    ),
    ("nextval currval setseed setval", "it changes a state, and queries change nothing"),
    (
        "query query_table json_execute_serialized_sql json_serialize json_deserialize "
        "from_substrait from_substrait_json get_substrait invoke",
        "it runs another query",
    ),
    (
        "levenshtein editdist3 damerau_levenshtein jaro jaccard hamming mismatches",
        "it takes too long on long texts, and cannot be interrupted",
    ),
    (
        "list_aggr array_aggr list_transform list_apply array_transform array_apply list_filter "
        "array_filter list_reduce array_reduce reduce apply filter aggregate",
        "it takes another function; use list_sum, list_max and the like, or unnest",
    ),
    (
        "list_resize array_resize bitstring printf format bar generate_subscripts",
        "a short text can make it build very much",
    ),
)

_COUNT_MAX: Final = 1_000
_RANGE_MAX: Final = 1_000_000
_REPLACEMENT_MAX: Final = 64
GROWTH_MAX: Final = 256
"""How many times longer all the replacements of one query may make a text, taken together."""


def why_refused(name: str) -> str | None:
    """Return why no query may call *name* (lower case), None where it may."""
    if name in FUNCTIONS:
        return None
    if name == "columns":
        return "COLUMNS is not part of the query language; name the columns"
    for words, reason in _REASONS:
        for word in words.split():
            if name == word or (name.startswith(word) and (word.endswith("_") or len(word) > 6)):
                return f"the function {shown_word(name)} cannot be used: {reason}"
    return f"there is no function {shown_word(name)} in queries{did_you_mean(name, FUNCTIONS)}"


def wrong_size(name: str, arguments: Sequence[exp.Expr]) -> str | None:
    """Return what is wrong with the sizes that a call of *name* asks for, None if nothing is."""
    if name in {"lpad", "rpad", "repeat"}:
        count = _whole(arguments[1]) if len(arguments) > 1 else None
        if count is None or abs(count) > _COUNT_MAX:
            limit = f"a number written in the query, at most {_COUNT_MAX:,}"
            return f"the length given to {name} must be {limit}"
    elif name in TABLE_FUNCTIONS:
        numbers = [_whole(argument) for argument in arguments]
        if not _is_short_range(numbers):
            limit = f"gives at most {_RANGE_MAX:,} of them"
            return f"{name} takes whole numbers written in the query, and {limit}"
    elif name in {"replace", "regexp_replace"}:
        new = arguments[2] if len(arguments) > 2 else None
        is_text = isinstance(new, exp.Literal) and new.is_string
        if new is None or not is_text or len(new.this) > _REPLACEMENT_MAX:
            limit = f"a text in single quotes of at most {_REPLACEMENT_MAX} characters"
            return f"the third argument of {name} must be {limit}"
    return None


def text_growth_of(name: str, arguments: Sequence[exp.Expr]) -> int:
    """Return how many times longer a text can become by a call that ``wrong_size`` allows."""
    if name not in {"replace", "regexp_replace"}:
        return 1
    old, new = arguments[1], arguments[2]
    if name == "replace" and isinstance(old, exp.Literal) and old.is_string and old.this:
        return max(1, -(-len(new.this) // len(old.this)))
    return 1 + len(new.this)


def _whole(node: exp.Expr) -> int | None:
    sign = 1
    if isinstance(node, exp.Neg):
        sign, node = -1, node.this
    if isinstance(node, exp.Literal) and not node.is_string and node.this.isdecimal():
        return sign * int(node.this)
    return None


def _is_short_range(numbers: Sequence[int | None]) -> bool:
    whole = [number for number in numbers if number is not None]
    if len(whole) != len(numbers) or not 1 <= len(whole) <= 3:
        return False
    start, stop = (0, whole[0]) if len(whole) == 1 else whole[:2]
    step = whole[2] if len(whole) == 3 else 1
    return step == 0 or abs(stop - start) // abs(step) <= _RANGE_MAX
