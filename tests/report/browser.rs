//! The page in a real browser: at the width of a phone, a tablet and a screen nothing overflows.

use crate::fixture::{edges, usual};
use crate::pages;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// CSS pixels.
const WIDTHS: [u32; 3] = [375, 768, 1280];

/// The report inside a frame of one width, and a script that looks at it from outside: the page itself runs none.
const PROBE: &str = r#"<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" style="border:0;display:block" width="WIDTH" height="HEIGHT" srcdoc="PAGE"></iframe><pre id="found"></pre>
<script>
addEventListener("load", () => {
  const inside = document.getElementById("page").contentDocument;
  const root = inside.documentElement;
  const wide = [];
  const walk = inside.createTreeWalker(inside.body, NodeFilter.SHOW_TEXT);
  for (let text = walk.nextNode(); text; text = walk.nextNode()) {
    const hidden = text.parentElement.closest(".hidden, style");
    const range = inside.createRange();
    range.selectNodeContents(text);
    const box = range.getBoundingClientRect();
    if (!hidden && box.width > 0 && (box.right > root.clientWidth + 0.5 || box.left < -0.5)) {
      wide.push(text.textContent.trim().slice(0, 60));
    }
  }
  for (const element of inside.querySelectorAll("body *:not(svg *):not(.hidden)")) {
    if (element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1) {
      wide.push(element.tagName + "." + element.getAttribute("class"));
    }
  }
  const found = { scroll: root.scrollWidth, client: root.clientWidth, height: root.scrollHeight, wide };
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"#;

fn chromium(arguments: &[String]) -> String {
    let program = std::env::var("FTTRAIN_CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
    let mut command = Command::new(&program);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=3000",
    ]);
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; Debian's package is `chromium`"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn attribute(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;")
}

/// What the browser says of a page at a width.
fn looked_at(page: &str, width: u32, folder: &Path) -> Value {
    let probe = PROBE.replace("WIDTH", &width.to_string()).replace("HEIGHT", "900");
    let path = folder.join(format!("probe-{width}.html"));
    fs::write(&path, probe.replace("PAGE", &attribute(page))).unwrap();
    let dom = chromium(&[
        "--window-size=1400,1000".into(),
        "--dump-dom".into(),
        format!("file://{}", path.display()),
    ]);
    fs::remove_file(&path).unwrap();
    let found = dom.rsplit_once("<pre id=\"found\">").unwrap().1.split_once("</pre>").unwrap().0;
    serde_json::from_str(&found.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
        .unwrap_or_else(|e| panic!("{e}: {found}"))
}

#[test]
#[ignore = "needs FTTRAIN_PAGES, a folder for the pages, and Debian's chromium"]
fn nothing_overflows_at_three_widths() {
    let folder = std::env::var("FTTRAIN_PAGES").expect("FTTRAIN_PAGES names a folder");
    let folder = Path::new(&folder);
    let named = std::iter::once(("usual", usual())).chain(edges());
    for (name, inputs) in named {
        let (_, texts) = pages(inputs);
        let file = folder.join(name.replace(' ', "-"));
        fs::write(file.with_extension("txt"), &texts[0]).unwrap();
        let page = file.with_extension("html");
        fs::write(&page, &texts[1]).unwrap();
        for width in WIDTHS {
            let found = looked_at(&texts[1], width, folder);
            assert_eq!(found["wide"], serde_json::json!([]), "{name} at {width}");
            assert_eq!(found["scroll"], found["client"], "{name} at {width}");
            let height = found["height"].as_u64().unwrap();
            for (scheme, setting) in [("light", 1), ("dark", 0)] {
                let shot = file.with_file_name(format!("{}-{width}-{scheme}.png", name.replace(' ', "-")));
                chromium(&[
                    format!("--window-size={width},{height}"),
                    format!("--blink-settings=preferredColorScheme={setting}"),
                    format!("--screenshot={}", shot.display()),
                    format!("file://{}", page.display()),
                ]);
                assert!(fs::read(&shot).unwrap().starts_with(b"\x89PNG"), "{}", shot.display());
            }
        }
        let paper = file.with_extension("pdf");
        chromium(&[format!("--print-to-pdf={}", paper.display()), format!("file://{}", page.display())]);
        assert!(fs::read(&paper).unwrap().starts_with(b"%PDF"));
    }
}
