// Keeps a page up to date, and tells what lies under the pointer, a finger or the arrow keys.
// Every page can be read and used without it.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const live = document.getElementById("live");
  const HOVER_MS = 10000; // a part under the pointer is left alone for so long
  const ANSWER_MS = 15000; // longer than the server lets anybody wait
  let timer = 0, failures = 0, busy = false;

  // ---- what is new ----
  const parts = () => [...document.querySelectorAll("[data-part]")];
  const known = () =>
    [document.body.dataset.layout, ...parts().map((p) => p.dataset.part + "." + p.dataset.digest)].join(",");

  async function look() {
    clearTimeout(timer);
    if (busy) return;
    busy = true;
    let wait = Number(document.body.dataset.poll) || 15000;
    try {
      if (!document.hidden) wait = (await ask()) || wait;
      failures = 0;
    } catch (error) {
      failures += 1;
      say("no answer since " + new Date().toLocaleTimeString() + "; trying again", true);
      wait = Math.min(16000, 1000 * 2 ** failures);
    } finally {
      busy = false;
      timer = setTimeout(look, wait);
    }
  }

  async function ask() {
    const address = new URL(location.href);
    address.hash = "";
    address.searchParams.set("known", known());
    const answer = await get(address);
    if (answer.status === 410) return location.reload();
    if (!answer.ok) throw new Error(answer.status);
    const news = await answer.json();
    if (news.anew) await replaceAll();
    else Object.entries(news.parts).forEach(([name, [digest, html]]) => replace(name, digest, html));
    document.body.dataset.poll = news.poll;
    say(news.poll < 5000 ? "live" : "");
    return news.poll;
  }

  const get = (address) =>
    fetch(address, { cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(ANSWER_MS) });

  async function replaceAll() {
    if (isTaken()) return;
    const answer = await get(location.href);
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (page.querySelector("script").src !== document.querySelector("script").src) return location.reload();
    if (isTaken()) return;
    const before = document.getElementById("main"), after = document.adoptNode(page.getElementById("main"));
    carryOver(before, after);
    const focus = focusIn(before);
    before.replaceWith(after);
    focus?.(after);
    document.body.dataset.layout = page.body.dataset.layout;
    prepare();
  }

  // A list that is open, or text that is chosen, would be gone.
  function isTaken() {
    const chosen = getSelection(), main = document.getElementById("main");
    if (document.activeElement?.matches("#main select")) return true;
    return Boolean(chosen && !chosen.isCollapsed && main.contains(chosen.anchorNode));
  }

  // What somebody has typed, ticked or unfolded and the server does not know of.
  function carryOver(before, after) {
    for (const one of before.querySelectorAll("input, select")) {
      const other = twin(one, after);
      if (!other) continue;
      if (one.matches("[type=checkbox], [type=radio]")) {
        if (one.checked !== one.defaultChecked) other.checked = one.checked;
      } else if (one.matches("select")) {
        const [chosen] = one.selectedOptions;
        const has = chosen && [...other.options].some((option) => option.value === chosen.value);
        if (has && !chosen.defaultSelected) other.value = chosen.value;
      } else if (one.value !== one.defaultValue) other.value = one.value;
    }
    const folds = new Map([...before.querySelectorAll("details")].map((one) => [keyOf(one), one.open]));
    for (const one of after.querySelectorAll("details")) one.open = folds.get(keyOf(one)) ?? one.open;
  }

  // The same control, link or box of another drawing of the page.
  function twin(one, page) {
    const by = (name) => one.hasAttribute(name) && `[${name}="${CSS.escape(one.getAttribute(name))}"]`;
    const value = one.matches("[type=checkbox], [type=radio]") ? by("value") || "" : "";
    const named = by("id") || (by("name") && by("name") + value) || by("href");
    if (named) return page.querySelector(one.localName + named);
    if (one.matches("summary"))
      return [...page.querySelectorAll("summary")].find((other) => keyOf(other.parentNode) === keyOf(one.parentNode));
    return null;
  }

  // Gives the focus that lies in here, and what is chosen in its words, to another drawing.
  function focusIn(before) {
    const one = document.activeElement;
    if (!one || !before.contains(one)) return null;
    const at = one.matches("input") ? [one.selectionStart, one.selectionEnd] : [null];
    return (after) => {
      const other = twin(one, after);
      other?.focus({ preventScroll: true });
      if (other && at[0] !== null) other.setSelectionRange(...at);
    };
  }

  function replace(name, digest, html) {
    const part = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
    if (!part || isHeld(part)) return;
    const open = [...part.querySelectorAll("details[open]")].map(keyOf);
    const hasFocus = part.contains(document.activeElement); // of a chart, see isHeld
    part.innerHTML = html;
    part.querySelectorAll("details").forEach((one) => { if (open.includes(keyOf(one))) one.open = true; });
    part.dataset.digest = digest;
    prepare();
    if (hasFocus) part.querySelector("figure")?.focus({ preventScroll: true });
  }

  const keyOf = (details) => details.id || details.querySelector("summary").textContent;

  // Whoever reads a value, has chosen something or is in the middle of typing is not disturbed.
  function isHeld(part) {
    const active = document.activeElement;
    if (part.contains(active) && !active.matches("figure")) return true;
    if (part.querySelector("input:checked, .row details[open], .strip.at")) return true;
    const chosen = getSelection();
    if (chosen && !chosen.isCollapsed && part.contains(chosen.anchorNode)) return true;
    if (!part.matches(":hover") || !part.querySelector("svg")) { delete part.dataset.held; return false; }
    part.dataset.held ||= Date.now();
    if (Date.now() - part.dataset.held < HOVER_MS) return true;
    delete part.dataset.held;
    return false;
  }

  function say(text, isLost) {
    if (!live) return;
    live.textContent = text;
    live.classList.toggle("lost", Boolean(isLost));
  }

  // ---- what lies under the pointer, a finger, or the arrow keys ----
  const tip = document.createElement("div"), spoken = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  spoken.className = "unseen";
  spoken.setAttribute("aria-live", "polite");
  document.body.append(tip, spoken);

  function told(element) {
    const mark = element.closest(".strip, .span, .event, .tokens span, .gantt rect, circle");
    if (!mark) return "";
    if (mark.title) { mark.dataset.told = mark.title; mark.removeAttribute("title"); }
    if (mark.dataset.told) return mark.dataset.told;
    const title = mark.querySelector(":scope > title");
    if (!title) return "";
    mark.dataset.told = title.textContent;
    title.remove(); // or the browser would tell it a second time
    return mark.dataset.told;
  }

  function show(text, x, y) {
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - width - 6)) + "px";
    tip.style.top = (y + 18 + height > innerHeight ? Math.max(4, y - height - 12) : y + 18) + "px";
  }

  function point(event) {
    if (!(event.target instanceof Element)) return "";
    const text = told(event.target);
    show(text, event.clientX, event.clientY);
    return text;
  }

  // A finger does not hover: what it has tapped is told until it taps elsewhere.
  const isFinger = (event) => event.pointerType === "touch";
  document.addEventListener("pointermove", (event) => { if (!isFinger(event)) point(event); }, { passive: true });
  document.addEventListener("pointerdown", (event) => { if (isFinger(event)) spoken.textContent = point(event); });
  document.addEventListener("pointerleave", (event) => { if (!isFinger(event)) show(""); });
  document.addEventListener("scroll", () => show(""), { passive: true, capture: true });

  // Token by token, and step by step of a chart, with the arrow keys.
  const marksOf = (box) => [...box.querySelectorAll(box.matches("figure") ? ".strip" : ":scope > span")];

  document.addEventListener("keydown", (event) => {
    const box = event.target instanceof Element && event.target.matches(".tokens, figure") && event.target;
    if (!box || !["ArrowLeft", "ArrowRight", "Escape"].includes(event.key)) return;
    const all = marksOf(box);
    const at = all.findIndex((one) => one.classList.contains("at"));
    all[at]?.classList.remove("at");
    if (event.key === "Escape") return show("");
    if (!all.length) return;
    event.preventDefault();
    const first = box.matches("figure") ? all.length - 1 : 0; // of a curve, the newest
    const step = event.key === "ArrowRight" ? 1 : -1;
    const next = all[at < 0 ? first : Math.max(0, Math.min(all.length - 1, at + step))];
    next.classList.add("at");
    const edge = next.getBoundingClientRect();
    spoken.textContent = told(next);
    show(told(next), edge.left, box.matches("figure") ? edge.top : edge.bottom - 14);
  });
  document.addEventListener("focusout", (event) => {
    const at = event.target.matches("figure") && event.target.querySelector(".strip.at");
    if (!at) return;
    at.classList.remove("at");
    show("");
  });

  // ---- controls ----
  function prepare() {
    document.querySelectorAll("figure:has(.strip)").forEach((figure) => { figure.tabIndex = 0; });
    filter();
  }
  function filter() {
    const words = (document.getElementById("find")?.value || "").trim().toLowerCase();
    document.querySelectorAll(".section").forEach((section) => {
      const whole = section.querySelector("h2").textContent.toLowerCase().includes(words);
      let shown = 0;
      section.querySelectorAll("figure").forEach((figure) => {
        const title = figure.querySelector("figcaption").textContent.toLowerCase();
        figure.hidden = !(whole || title.includes(words));
        shown += !figure.hidden;
      });
      section.hidden = !shown;
    });
  }
  document.addEventListener("input", (event) => { if (event.target.id === "find") filter(); });
  // Forms leave out what was left empty: addresses stay short.
  document.addEventListener("submit", (event) => {
    event.target.querySelectorAll("input, select").forEach((one) => { if (one.value === "") one.disabled = true; });
  });
  addEventListener("pageshow", () =>
    document.querySelectorAll("form :disabled").forEach((one) => { one.disabled = false; }));

  document.getElementById("theme")?.addEventListener("click", (event) => {
    const address = new URL(location.href);
    const next = event.currentTarget.dataset.next;
    if (next) address.searchParams.set("theme", next);
    else address.searchParams.delete("theme");
    event.preventDefault();
    location.assign(address);
  });

  document.querySelector(".menu [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  prepare();
  timer = setTimeout(look, Number(document.body.dataset.poll) || 15000);
  if (Number(document.body.dataset.poll) < 5000) say("live");
})();
