// Keeps a page up to date, tells at once what lies under the pointer, and sends forms when they
// change. Every page can be read and used without it.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const live = document.getElementById("live");
  const HOVER_MS = 10000; // a part under the pointer is left alone for so long
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
    const answer = await fetch(address, { cache: "no-store", credentials: "same-origin" });
    if (answer.status === 410) return location.reload();
    if (!answer.ok) throw new Error(answer.status);
    const news = await answer.json();
    if (news.anew) await replaceAll();
    else Object.entries(news.parts).forEach(([name, [digest, html]]) => replace(name, digest, html));
    document.body.dataset.poll = news.poll;
    say(news.poll < 5000 ? "live" : "");
    return news.poll;
  }

  async function replaceAll() {
    const answer = await fetch(location.href, { cache: "no-store", credentials: "same-origin" });
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (page.querySelector("script").src !== document.querySelector("script").src) return location.reload();
    document.getElementById("main").replaceWith(page.getElementById("main"));
    document.body.dataset.layout = page.body.dataset.layout;
    filter();
  }

  function replace(name, digest, html) {
    const part = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
    if (!part || isHeld(part)) return;
    const open = [...part.querySelectorAll("details[open]")].map(keyOf);
    part.innerHTML = html;
    part.querySelectorAll("details").forEach((one) => { if (open.includes(keyOf(one))) one.open = true; });
    part.dataset.digest = digest;
    filter();
  }

  const keyOf = (details) => details.id || details.querySelector("summary").textContent;

  // Whoever reads a value, has chosen something or is in the middle of typing is not disturbed.
  function isHeld(part) {
    if (part.contains(document.activeElement)) return true;
    if (part.querySelector("input:checked, .row details[open]")) return true;
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

  // ---- what lies under the pointer ----
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

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

  document.addEventListener("pointermove", (event) => {
    if (event.target instanceof Element) show(told(event.target), event.clientX, event.clientY);
  }, { passive: true });
  document.addEventListener("pointerleave", () => show(""));
  document.addEventListener("scroll", () => show(""), { passive: true, capture: true });

  // Token by token with the arrow keys.
  document.addEventListener("keydown", (event) => {
    const tokens = event.target instanceof Element && event.target.matches(".tokens") && event.target;
    if (!tokens || !["ArrowLeft", "ArrowRight", "Escape"].includes(event.key)) return;
    const all = [...tokens.children];
    const at = all.findIndex((one) => one.classList.contains("at"));
    all[at]?.classList.remove("at");
    if (event.key === "Escape") return show("");
    event.preventDefault();
    const next = all[Math.max(0, Math.min(all.length - 1, at + (event.key === "ArrowRight" ? 1 : -1)))];
    next.classList.add("at");
    const box = next.getBoundingClientRect();
    show(told(next), box.left, box.bottom - 14);
    tokens.setAttribute("aria-description", next.dataset.told);
  });

  // ---- controls ----
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
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
  });
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
  timer = setTimeout(look, Number(document.body.dataset.poll) || 15000);
  if (Number(document.body.dataset.poll) < 5000) say("live");
})();
