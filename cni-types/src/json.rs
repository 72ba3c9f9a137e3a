//! JSON as Go's decoder reads it, on top of serde: keys match whatever their case, `null` keeps the default, the last
//! of two equal keys counts. Beyond that, errors name the path of the key, and unknown keys are reported.
//!
//! containerd's CRI sends `HostPort` where podman sends `hostPort`; a decoder that minds case sees nothing there.
//! Only the fields of structs are matched so: the keys of a map are data.

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize, forward_to_deserialize_any};
use serde_json::{Map, Value};

/// Why a value could not be decoded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{path}: {reason}")]
pub struct DecodeError {
    /// Where in the document, as `ipam.ranges[0][0].subnet`; `.` is the document itself.
    pub path: String,
    /// What is wrong there, with the value.
    pub reason: String,
}

/// Decodes `value`, handing the path of each key that `T` does not know to `unknown`.
///
/// # Errors
/// The first value that does not fit.
pub fn decode<'de, T: Deserialize<'de>>(
    value: &'de Value,
    mut unknown: impl FnMut(String),
) -> Result<T, DecodeError> {
    let mut report = |path: serde_ignored::Path<'_>| unknown(dotted(&path));
    let decoded =
        serde_path_to_error::deserialize(serde_ignored::Deserializer::new(Folded(value), &mut report));
    decoded.map_err(|error| {
        let path = error.path().to_string();
        let composite = at(value, error.path()).filter(|value| value.is_object() || value.is_array());
        let reason = in_words(error.into_inner().to_string());
        match composite {
            // serde names a scalar, and says only "map" or "sequence" of anything else.
            Some(composite) if reason.starts_with("invalid type") => {
                DecodeError { path, reason: format!("{reason}, not {}", shortened(composite)) }
            }
            _ => DecodeError { path, reason },
        }
    })
}

/// A reason with Rust's names of types replaced by what they hold.
fn in_words(reason: String) -> String {
    const NUMBERS: [(&str, &str); 6] = [
        ("u8", "a whole number from 0 to 255"),
        ("u16", "a whole number from 0 to 65535"),
        ("u32", "a whole number from 0 to 4294967295"),
        ("u64", "a whole number from 0"),
        ("usize", "a whole number from 0"),
        ("i64", "a whole number"),
    ];
    let Some((said, expected)) = reason.rsplit_once("expected ") else { return reason };
    let of_number = NUMBERS.iter().find(|(name, _)| *name == expected).map(|(_, words)| *words);
    match of_number
        .or_else(|| (expected == "a map" || expected.starts_with("struct ")).then_some("an object"))
    {
        Some(words) => format!("{said}expected {words}"),
        None => reason,
    }
}

/// The value at `path`, whose keys are spelled as the structs have them.
fn at<'v>(value: &'v Value, path: &serde_path_to_error::Path) -> Option<&'v Value> {
    use serde_path_to_error::Segment;
    path.iter().try_fold(value, |value, segment| match segment {
        Segment::Seq { index } => value.get(index),
        Segment::Map { key } => value.get(key).or_else(|| {
            let mut fields = value.as_object()?.iter();
            fields.find_map(|(name, value)| name.eq_ignore_ascii_case(key).then_some(value))
        }),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

/// A value in writing, as much of it as shows which one is meant.
fn shortened(value: &Value) -> String {
    const ENOUGH: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(ENOUGH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Encodes `value` as Go's `MarshalIndent` with four spaces does, without a newline at the end.
///
/// Go escapes `<`, `>` and `&`, and two line separators that JavaScript minds; all of them can stand only inside
/// strings, so they are replaced in the finished text.
pub(crate) fn encode(value: &impl Serialize) -> serde_json::Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    let text = String::from_utf8(text).map_err(serde::ser::Error::custom)?;
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return Ok(text);
    }
    Ok(text
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029"))
}

fn dotted(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", dotted(parent)),
        Path::Map { parent, key } => match dotted(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            dotted(parent)
        }
    }
}

/// A JSON value whose objects, where a struct is wanted, present their keys in the struct's own spelling.
struct Folded<'de>(&'de Value);

impl<'de> Deserializer<'de> for Folded<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(FoldedItems(items.iter())),
            Value::Object(fields) => visitor.visit_map(FoldedFields::as_written(fields)),
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Object(fields) => visitor.visit_map(FoldedFields::of_struct(fields, known)),
            // A derived struct would also take its fields from an array, in order; JSON configurations never mean that.
            Value::Array(_) => Err(serde::de::Error::invalid_type(Unexpected::Seq, &visitor)),
            other => other.deserialize_struct(name, known, visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    /// An enum here is one of several words.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_enum(String::deserialize(self.0)?.into_deserializer())
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct FoldedItems<'de>(std::slice::Iter<'de, Value>);

impl<'de> SeqAccess<'de> for FoldedItems<'de> {
    type Error = serde_json::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Self::Error> {
        self.0.next().map(|item| seed.deserialize(Folded(item))).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct FoldedFields<'de> {
    fields: std::vec::IntoIter<(&'de str, &'de Value)>,
    current: Option<&'de Value>,
}

impl<'de> FoldedFields<'de> {
    fn as_written(fields: &'de Map<String, Value>) -> Self {
        let fields: Vec<_> = fields.iter().map(|(key, value)| (key.as_str(), value)).collect();
        Self { fields: fields.into_iter(), current: None }
    }

    /// Keys in the spelling of `known`, each once, `null` left out. The exact spelling wins over another one.
    fn of_struct(fields: &'de Map<String, Value>, known: &'static [&'static str]) -> Self {
        let mut folded: Vec<(&'de str, &'de Value)> = Vec::with_capacity(fields.len());
        for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let Some(spelling) = known.iter().find(|name| name.eq_ignore_ascii_case(key)).copied() else {
                folded.push((key, value));
                continue;
            };
            if spelling != key && fields.get(spelling).is_some_and(|value| !value.is_null()) {
                continue;
            }
            match folded.iter_mut().find(|(earlier, _)| *earlier == spelling) {
                Some(earlier) => earlier.1 = value,
                None => folded.push((spelling, value)),
            }
        }
        Self { fields: folded.into_iter(), current: None }
    }
}

impl<'de> MapAccess<'de> for FoldedFields<'de> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        let Some((key, value)) = self.fields.next() else { return Ok(None) };
        self.current = Some(value);
        let key: StrDeserializer<'_, Self::Error> = key.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Self::Error> {
        let value = self.current.take().ok_or_else(|| serde::de::Error::custom("a value before its key"))?;
        seed.deserialize(Folded(value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Port {
        host_port: u16,
        host_ip: String,
        labels: BTreeMap<String, String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Fast,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Outer {
        mode: Option<Mode>,
        mtu: u32,
        ports: Vec<Port>,
        inner: Option<Port>,
    }

    #[track_caller]
    fn decoded(value: &Value) -> (Outer, Vec<String>) {
        let mut unknown = Vec::new();
        (decode(value, |path| unknown.push(path)).unwrap(), unknown)
    }

    #[test]
    fn keys_of_structs_match_in_any_case_at_every_level() {
        let value =
            json!({"MTU": 1400, "Ports": [{"HostPort": 80, "HOSTIP": "::"}], "INNER": {"hostport": 1}});
        let (outer, unknown) = decoded(&value);
        assert_eq!(outer.mtu, 1400);
        assert_eq!(outer.ports, [Port { host_port: 80, host_ip: "::".into(), ..Port::default() }]);
        assert_eq!(outer.inner.unwrap().host_port, 1);
        assert!(unknown.is_empty());
    }

    #[test]
    fn keys_of_maps_are_data() {
        let value = json!({"inner": {"labels": {"App": "a", "app": "b"}}});
        let labels = decoded(&value).0.inner.unwrap().labels;
        assert_eq!(labels.keys().collect::<Vec<_>>(), ["App", "app"]);
    }

    #[test]
    fn null_keeps_the_default_and_the_exact_spelling_wins() {
        let value = json!({"mtu": null, "ports": null, "inner": null});
        assert_eq!(decoded(&value).0, Outer::default());
        let value = json!({"MTU": 1, "mtu": 2, "mTu": 3});
        assert_eq!(decoded(&value).0.mtu, 2);
        let value = json!({"MTU": 1, "mtu": null});
        assert_eq!(decoded(&value).0.mtu, 1);
    }

    #[test]
    fn unknown_keys_are_reported_with_their_path() {
        let value = json!({"x": 1, "ports": [{"y": {"z": 1}}]});
        assert_eq!(decoded(&value).1, ["ports[0].y", "x"]);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_path() {
        for (value, path, reason) in [
            (
                json!({"mtu": "1500"}),
                "mtu",
                "invalid type: string \"1500\", expected a whole number from 0 to 4294967295",
            ),
            (
                json!({"mtu": 1400.0}),
                "mtu",
                "invalid type: floating point `1400.0`, expected a whole number from 0 to 4294967295",
            ),
            (
                json!({"mtu": -1}),
                "mtu",
                "invalid value: integer `-1`, expected a whole number from 0 to 4294967295",
            ),
            (
                json!({"ports": [{}, {"HostPort": 70000}]}),
                "ports[1].hostPort",
                "invalid value: integer `70000`, expected a whole number from 0 to 65535",
            ),
            (json!({"mode": "slow"}), "mode", "unknown variant `slow`, expected `fast`"),
            (json!({"mode": 7}), "mode", "invalid type: integer `7`, expected a string"),
            (
                json!({"mode": {"fast": null}}),
                "mode",
                "invalid type: map, expected a string, not {\"fast\":null}",
            ),
            (json!({"inner": []}), "inner", "invalid type: sequence, expected an object, not []"),
            (
                json!({"Ports": [{"HOSTIP": {"a": [1]}}]}),
                "ports[0].hostIp",
                "invalid type: map, expected a string, not {\"a\":[1]}",
            ),
        ] {
            let error = decode::<Outer>(&value, |_| ()).unwrap_err();
            assert_eq!((error.path.as_str(), error.reason.as_str()), (path, reason));
        }
    }

    #[test]
    fn text_is_escaped_as_go_does() {
        assert_eq!(
            encode(&json!({"a": "<b>&\u{2028}"})).unwrap(),
            "{\n    \"a\": \"\\u003cb\\u003e\\u0026\\u2028\"\n}"
        );
        assert_eq!(encode(&json!({})).unwrap(), "{}");
    }
}
