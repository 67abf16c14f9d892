//! Remarks in the words that a person reads: one note per effect that is missing here.

use inference_api::remark::Remark;

/// Beginnings of paths that say nothing that the kind does not say.
const PREFIXES: [&str; 2] = ["spec.template.spec.", "spec."];

/// One note for all remarks that name the same effect, in the order of the first of each.
pub(super) fn grouped(remarks: &[Remark]) -> Vec<String> {
    let mut groups: Vec<(&str, Vec<Group<'_>>)> = Vec::new();
    for remark in remarks {
        let effect = remark.on_a_cluster.as_str();
        let group = match groups.iter_mut().find(|(known, _)| *known == effect) {
            Some((_, group)) => group,
            None => {
                groups.push((effect, Vec::new()));
                &mut groups.last_mut().expect("one was just added").1
            }
        };
        let same =
            |known: &&mut Group<'_>| known.remark.kind == remark.kind && known.remark.key == remark.key;
        match group.iter_mut().find(same) {
            Some(known) => known.fields.push(short(&remark.field)),
            None => group.push(Group { remark, fields: vec![short(&remark.field)] }),
        }
    }
    let note = |(effect, objects): &(&str, Vec<Group<'_>>)| {
        let objects: Vec<String> = objects.iter().map(Group::text).collect();
        format!("without effect here: {}; on a cluster {effect}", objects.join(", "))
    };
    groups.iter().map(note).collect()
}

/// An object, and its fields that have the same effect.
struct Group<'a> {
    remark: &'a Remark,
    fields: Vec<&'a str>,
}

impl Group<'_> {
    fn text(&self) -> String {
        let Self { remark: Remark { kind, key, .. }, fields } = self;
        let kind = if kind.is_empty() { "a document" } else { kind };
        let fields: Vec<&str> = fields.iter().copied().filter(|field| !field.is_empty()).collect();
        let fields = if fields.is_empty() { String::new() } else { format!(" ({})", fields.join(", ")) };
        format!("{kind} {key}{fields}")
    }
}

fn short(field: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| field.strip_prefix(prefix)).unwrap_or(field)
}

#[cfg(test)]
mod tests {
    use inference_api::object::ObjectKey;
    use inference_api::remark::Remark;

    use super::grouped;

    #[test]
    fn each_effect_is_noted_once() {
        let remark = |kind: &str, name: &str, field: &str, effect: &str| {
            Remark::new(kind, ObjectKey::new("default", name), field, effect)
        };
        let remarks = [
            remark("Deployment", "a", "spec.template.spec.volumes", "the kubelet follows them"),
            remark("Role", "r", "", "Kubernetes acts on them"),
            remark("Deployment", "a", "spec.strategy", "the kubelet follows them"),
            remark("Deployment", "b", "spec.strategy", "the kubelet follows them"),
        ];
        assert_eq!(
            grouped(&remarks),
            [
                "without effect here: Deployment default/a (volumes, strategy), Deployment default/b (strategy); on a cluster the kubelet follows them",
                "without effect here: Role default/r; on a cluster Kubernetes acts on them",
            ]
        );
    }
}
