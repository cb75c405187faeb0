//! What can be known to be wrong before anything is started or sent.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use activities::oci::{ImageTag, InvalidTag};
use activities::sealed::SecretBytes;
use workflows::contract::{FailureClass, ProjectName};
use workflows::policy::check_arguments;

use super::args::UpArgs;
use crate::cli::Failure;
use crate::cli::credentials::secret;
use crate::cli::failure::io_text;

/// The most a project's name may have.
const NAME_LIMIT: usize = 63;

/// A command line that makes sense.
#[derive(Debug)]
pub struct Plan {
    /// The context, absolute.
    pub root: PathBuf,
    /// The Dockerfile, absolute, and its text.
    pub dockerfile: PathBuf,
    pub dockerfile_text: String,
    pub project: ProjectName,
    pub tags: Vec<ImageTag>,
    pub args: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, SecretBytes>,
    /// `min`, `max` or `none`; `None` leaves it to the project.
    pub provenance: Option<String>,
}

/// Checks the command line against this machine.
///
/// # Errors
/// Usage errors, each saying what is wrong with what, and what was looked for.
pub fn check(args: &UpArgs) -> Result<Plan, Failure> {
    let root = context(&args.path)?;
    let dockerfile = dockerfile(&root, args.file.as_deref())?;
    let text = std::fs::read(&dockerfile)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", dockerfile.display())))?;
    let build_args = build_args(&args.build_args, |name| env::var_os(name))?;
    check_arguments(build_args.keys()).map_err(|error| Failure::new(FailureClass::Refused, error.to_string()))?;
    Ok(Plan {
        project: project(args.project.as_ref(), &root)?,
        tags: args.tags.iter().map(|text| tag(text)).collect::<Result<_, _>>()?,
        args: build_args,
        labels: args.labels.iter().map(|text| label(text)).collect::<Result<_, _>>()?,
        secrets: args.secrets.iter().map(|spec| secret(spec)).collect::<Result<_, _>>()?,
        provenance: args.provenance.as_deref().map(provenance).transpose()?,
        root,
        dockerfile,
        dockerfile_text: String::from_utf8_lossy(&text).into_owned(),
    })
}

fn tag(text: &str) -> Result<ImageTag, Failure> {
    text.parse().map_err(|error: InvalidTag| {
        Failure::usage(error.to_string()).hint("a tag is [host[:port]/]repository[:tag], the repository in lower case")
    })
}

fn context(path: &Path) -> Result<PathBuf, Failure> {
    let text = path.to_string_lossy();
    if text == "-" || text.contains("://") || text.starts_with("git@") {
        return Err(Failure::usage(format!(
            "{text}: the context must be a directory; archives and URLs are not taken"
        )));
    }
    let absolute = path.canonicalize().map_err(|error| {
        let shown = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Failure::usage(format!("cannot use {} as the context: {}", shown.display(), io_text(&error)))
    })?;
    if absolute.is_dir() {
        return Ok(absolute);
    }
    let failure = Failure::usage(format!("{} is no directory", absolute.display()));
    Err(failure.hint("the context is the directory to build; name a Dockerfile with --file"))
}

/// As docker looks for it: relative to the working directory when named, else in the context, in capitals or not.
fn dockerfile(root: &Path, named: Option<&Path>) -> Result<PathBuf, Failure> {
    let candidates = match named {
        Some(file) if file == Path::new("-") => {
            return Err(Failure::usage("--file -: the Dockerfile must be a file; it is not taken from standard input"));
        }
        Some(file) => vec![std::path::absolute(file).unwrap_or_else(|_| file.to_owned())],
        None => vec![root.join("Dockerfile"), root.join("dockerfile")],
    };
    if let Some(found) = candidates.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    let looked_for: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
    let failure = Failure::usage(format!("no Dockerfile: looked for {}", looked_for.join(" and ")));
    Err(if named.is_none() { failure.hint("name another one with --file, or another directory") } else { failure })
}

/// The project that a command line is about; `None` where the command is going to say what is wrong with it.
pub fn project_of(args: &UpArgs) -> Option<ProjectName> {
    project(args.project.as_ref(), &context(&args.path).ok()?).ok()
}

fn project(named: Option<&ProjectName>, root: &Path) -> Result<ProjectName, Failure> {
    if let Some(name) = named {
        return Ok(name.clone());
    }
    let directory = root.file_name().unwrap_or_default().to_string_lossy();
    slug(&directory).parse().map_err(|_| {
        Failure::usage(format!("the name of {} makes no project name", root.display())).hint("name one with --project")
    })
}

/// A directory's name as a project name: lower case, one `-` for everything else.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' => slug.push(c),
            _ if !slug.is_empty() && !slug.ends_with('-') => slug.push('-'),
            _ => {}
        }
    }
    slug.truncate(NAME_LIMIT);
    slug.trim_end_matches('-').to_owned()
}

/// Time stamps of a reproducible build, in seconds since 1970. Build tools take it from the environment, and so does
/// docker buildx.
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The arguments of `--build-arg`, and `SOURCE_DATE_EPOCH` of the environment unless it is among them.
fn build_args(
    texts: &[String],
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut args = BTreeMap::new();
    for text in texts {
        args.extend(build_arg(text, &variable)?);
    }
    let is_named = texts.iter().any(|text| text.split('=').next() == Some(SOURCE_DATE_EPOCH));
    let epoch = variable(SOURCE_DATE_EPOCH).filter(|epoch| !is_named && !epoch.is_empty());
    if let Some(epoch) = epoch {
        args.insert(SOURCE_DATE_EPOCH.to_owned(), utf8(SOURCE_DATE_EPOCH, epoch)?);
    }
    Ok(args)
}

/// `NAME=VALUE`, or `NAME` with the environment's value; an unset variable sets nothing, as with docker.
fn build_arg(text: &str, variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<(String, String)>, Failure> {
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value.to_owned())));
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(Failure::usage(format!("--build-arg {text:?}: must be NAME=VALUE or NAME")));
    }
    let value = match value {
        Some(value) => Some(value),
        None => variable(name).map(|value| utf8(name, value)).transpose()?,
    };
    Ok(value.map(|value| (name.to_owned(), value)))
}

fn utf8(name: &str, value: OsString) -> Result<String, Failure> {
    value.into_string().map_err(|_| {
        Failure::usage(format!("the variable {name} is not UTF-8 text, so it cannot be a build argument"))
            .hint(format!("set it to UTF-8 text, or give the value with --build-arg {name}=VALUE"))
    })
}

fn label(text: &str) -> Result<(String, String), Failure> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => Err(Failure::usage(format!("--label {text:?}: must be NAME=VALUE"))),
        (name, value) => Ok((name.to_owned(), value.to_owned())),
    }
}

/// Docker's forms, without its other attributes: `true`, `false`, `min`, `max`, `mode=max`.
fn provenance(text: &str) -> Result<String, Failure> {
    match text.strip_prefix("mode=").unwrap_or(text) {
        "true" | "min" => Ok("min".into()),
        "max" => Ok("max".into()),
        "false" | "none" => Ok("none".into()),
        _ => Err(Failure::usage(format!("--provenance={text}: must be min, max or none"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directorys_name_becomes_a_project_name() {
        for (text, expected) in [
            ("web", "web"),
            ("My Web_App.v2", "my-web-app-v2"),
            ("--x--", "x"),
            ("Ünïcode", "n-code"),
            ("日本", ""),
            (&"a".repeat(70), &"a".repeat(63)),
            (&format!("{}-b", "a".repeat(62)), &"a".repeat(62)),
        ] {
            assert_eq!(slug(text), expected, "{text}");
        }
    }

    #[test]
    fn build_args_and_labels() {
        let variable = |name: &str| (name == "SET").then(|| "value".into());
        assert_eq!(build_arg("A=b=c", variable).unwrap(), Some(("A".into(), "b=c".into())));
        assert_eq!(build_arg("UNSET", variable).unwrap(), None);
        assert_eq!(build_arg("SET", variable).unwrap(), Some(("SET".into(), "value".into())));
        assert_eq!(build_arg("=x", variable).unwrap_err().message, "--build-arg \"=x\": must be NAME=VALUE or NAME");
        assert_eq!(label("a.b=c=d").unwrap(), ("a.b".into(), "c=d".into()));
        assert_eq!(label("bare").unwrap(), ("bare".into(), String::new()));
    }

    #[test]
    fn a_variable_that_is_not_utf_8_is_wrong_use() {
        use std::os::unix::ffi::OsStringExt as _;
        let variable = |_: &str| Some(OsString::from_vec(b"caf\xe9".to_vec()));
        let failure = build_args(&["DRINK".into()], variable).unwrap_err();
        assert_eq!(failure.class, FailureClass::Usage);
        assert!(failure.message.contains("DRINK"), "{failure}");
        assert!(build_args(&[], variable).unwrap_err().message.contains(SOURCE_DATE_EPOCH));
    }

    #[test]
    fn source_date_epoch_comes_from_the_environment_unless_it_is_given() {
        let epoch = |texts: &[&str], value: Option<&str>| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            let variable = |name: &str| value.filter(|_| name == SOURCE_DATE_EPOCH).map(OsString::from);
            build_args(&texts, variable).unwrap().get(SOURCE_DATE_EPOCH).cloned()
        };
        assert_eq!(epoch(&["A=1"], Some("1700000000")).as_deref(), Some("1700000000"));
        assert_eq!(epoch(&["SOURCE_DATE_EPOCH"], Some("1700000000")).as_deref(), Some("1700000000"));
        assert_eq!(epoch(&["SOURCE_DATE_EPOCH=0"], Some("1700000000")).as_deref(), Some("0"));
        assert_eq!(epoch(&["SOURCE_DATE_EPOCH="], Some("1700000000")).as_deref(), Some(""));
        assert_eq!(epoch(&[], Some("")), None);
        assert_eq!(epoch(&[], None), None);
    }

    #[test]
    fn provenance_takes_dockers_forms() {
        for (text, mode) in [("true", "min"), ("mode=max", "max"), ("min", "min"), ("false", "none"), ("none", "none")]
        {
            assert_eq!(provenance(text).unwrap(), mode);
        }
        assert_eq!(provenance("much").unwrap_err().message, "--provenance=much: must be min, max or none");
    }
}
