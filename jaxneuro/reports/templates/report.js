"use strict";
(() => {
  const PAGE = matchMedia("(max-width: 36rem)").matches ? 3 : 6; // cards built at a time: short pages, also on a phone
  const root = document.documentElement;
  const themes = ["system", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("jaxneuro-theme"); } catch { return null; } };
  const store = (t) => { try { localStorage.setItem("jaxneuro-theme", t); } catch { /* file pages may have none */ } };
  const setTheme = (t) => { if (t === "light" || t === "dark") root.dataset.theme = t; else delete root.dataset.theme; };
  setTheme(stored());

  const element = (name, props = {}, ...children) => {
    const e = Object.assign(document.createElement(name), props);
    e.append(...children);
    return e;
  };

  const shown = (v) => (v === null ? "–" : String(Number(v.toPrecision(3))).replace("-", "−"));

  function token(text, value, most, peak) {
    const span = element("span", { textContent: text, title: `${text}: ${shown(value)}` });
    const share = most && value !== null ? value / most : 0;
    span.className = "tok" + (Math.abs(share) > 0.03 ? (share < 0 ? " neg" : " pos") : "") + (peak ? " peak" : "");
    span.style.setProperty("--a", Math.min(Math.abs(share), 1).toFixed(2));
    if (Math.abs(share) > 0.03) span.dataset.value = shown(value);
    return span;
  }

  function example([group, tokens, values, peak, repeated], most) {
    const at = Number.isInteger(peak) && peak >= 0 && peak < tokens.length ? peak : -1;
    const line = element("p", { className: "tokens", dir: "auto" });
    line.append(...tokens.map((t, i) => token(t, values[i] ?? null, most, i === at)));
    const head = element("p", { className: "peak-value" }, element("b", { textContent: group, title: group }));
    if (at >= 0) head.append(" ", element("span", { textContent: shown(values[at] ?? null), title: "peak activation" }));
    const text = element("div", {}, line);
    if (repeated) text.append(element("p", { className: "repeated", textContent: `nearly the text of example ${repeated}` }));
    return element("div", { className: "example" }, head, text);
  }

  let pictures = {};

  function pictured([group, [file], values, peak, , [id, rows, columns, top]], most) {
    const of = pictures[id] ?? {}, over = element("div", { className: "over", ariaHidden: "true" });
    over.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
    values.forEach((v, i) => {
      const share = most && v !== null ? Math.min(Math.max(v / most, 0), 1) : 0;
      const patch = element("i", { className: i === peak ? "peak" : "" });
      patch.style.setProperty("--veil", (0.65 * (1 - share)).toFixed(2));
      over.append(patch);
    });
    const at = Number.isInteger(peak);
    const image = element("img", { src: of.src ?? "", alt: file, className: of.few ? "few" : "" });
    const where = at ? `largest at row ${Math.floor(peak / columns) + 1}, column ${peak % columns + 1} of ${rows} x ${columns}` : "largest at no patch";
    const words = element("figcaption", {}, element("b", { textContent: group, title: group }), " ", element("span", { textContent: shown(top), title: "largest activation" }));
    return element("figure", { className: "pictured", title: `${file}: ${where}` }, element("div", {}, image, over), words);
  }

  function fill(card, item) {
    const link = card.querySelector(".self");
    card.id = item.id;
    link.href = "#" + encodeURIComponent(item.id);
    const box = card.querySelector(".examples");
    if (!item.examples.length) box.append(element("p", { className: "absent", textContent: "Not in the data of this run." }));
    const all = item.examples.flatMap((e) => e[2]).filter((v) => v !== null).map(Math.abs);
    const most = all.length ? Math.max(...all) : 0;
    box.append(...item.examples.map((e) => (e[5] ? pictured : example)(e, most)));
    box.classList.toggle("gallery", item.examples.some((e) => e[5]));
    return card;
  }

  const fold = (s) => s.normalize("NFC").toLowerCase();

  function haystack(item) {
    const texts = item.examples.map((e) => `${e[0]} ${e[1].join("")} ${e[1].join(" ")}`);
    return fold([item.id, item.also, item.class, ...item.groups, ...item.words, ...texts].join("\n"));
  }

  // Numbers that are missing come last in either direction; ties keep the order of the list.
  function compare(key) {
    const sign = key.startsWith("-") ? -1 : 1, name = key.replace(/^-/, "");
    return ({ item: { keys: a } }, { item: { keys: b } }) => {
      const x = a[name] ?? null, y = b[name] ?? null;
      if (x === null || y === null) return (x === null) - (y === null) || a.order - b.order;
      return sign * (x - y) || (a.unit ?? 0) - (b.unit ?? 0) || a.order - b.order;
    };
  }

  function listing(section, items, noun) {
    const part = (role) => section.querySelector(`[data-role="${role}"]`);
    const templates = [...section.querySelectorAll("template[data-card]")];
    const entries = items.map((item, i) => ({ item, template: templates[i], node: null, text: null }));
    const controls = ["query", "group", "class", "sort"].map(part).filter(Boolean);
    let limit = PAGE;

    const build = (e) => (e.node ??= fill(e.template.content.firstElementChild.cloneNode(true), e.item));
    const chosen = () => {
      const terms = fold(part("query").value).split(/\s+/).filter(Boolean);
      const group = part("group").value, kind = part("class")?.value ?? "";
      return entries.filter((e) =>
        (!group || e.item.groups.includes(group)) && (!kind || e.item.class === kind) &&
        terms.every((t) => (e.text ??= haystack(e.item)).includes(t))).sort(compare(part("sort").value));
    };
    const draw = () => {
      const found = chosen(), some = found.slice(0, limit);
      part("cards").replaceChildren(...some.map(build));
      part("more").hidden = some.length === found.length;
      part("more").textContent = `Show ${Math.min(PAGE, found.length - some.length)} more`;
      const what = `${noun}${items.length === 1 ? "" : "s"}`;
      part("count").textContent = found.length
        ? `${found.length} of ${items.length} ${what}` + (some.length < found.length ? `, the first ${some.length} shown` : "")
        : `No ${noun} matches. Clear the search or choose "all".`;
      return found;
    };
    const restart = () => { limit = PAGE; draw(); };
    controls.forEach((c) => c.addEventListener("input", restart));
    part("values")?.addEventListener("change", (e) => section.classList.toggle("show-values", e.target.checked));
    part("more").addEventListener("click", () => {
      const first = part("cards").children.length;
      limit += PAGE;
      draw();
      part("cards").children[first]?.focus({ preventScroll: true }); // the keyboard goes on where it was
    });
    draw();
    return (id) => {
      const at = items.findIndex((item) => item.id === id);
      if (at < 0) return;
      controls.forEach((c) => { if (c.tagName === "SELECT") c.selectedIndex = 0; else c.value = ""; });
      limit = Math.max(PAGE, at + 1);
      draw();
      entries[at].node.scrollIntoView();
      entries[at].node.focus({ preventScroll: true });
    };
  }

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => { button.textContent = `Theme: ${root.dataset.theme ?? "system"}`; };
    button.hidden = false;
    name();
    button.addEventListener("click", () => {
      const next = themes[(themes.indexOf(root.dataset.theme ?? "system") + 1) % themes.length];
      setTheme(next);
      store(next);
      name();
    });

    const data = JSON.parse(document.getElementById("data").textContent);
    pictures = data.pictures ?? {};
    const jumps = [["neurons", "neuron"], ["latents", "latent"]].filter(([kind]) => data[kind].length).map(([kind, noun]) =>
      listing(document.getElementById(kind === "latents" ? "dictionary" : kind), data[kind], noun));
    const jump = () => { const id = decodeURIComponent(location.hash.slice(1)); if (id) jumps.forEach((j) => j(id)); };
    addEventListener("hashchange", jump);
    jump();
  });
})();
