-- after: fence, run, incarnation, add, move
-- Make the stream and its group where they are absent, and bring its ids behind all that was made of it. KEYS: lease, stream, books.
-- ARGV: token, group, committed position ("ms-seq"), accepted events as the lake knows them ('': the stream must be there), the
-- newest id that anything stands for, then of each thing that outlives a Redis how far it has come: id and incarnation. The first
-- alone decides for the ids up to it: a table beside `aggregates` may be a zombie's, who could write to that one no more.
-- Reply: 1 where the stream or the group was made, the incarnation, how many entries were moved.
-- A Redis that lost its memory, or the end of it, is behind these ids, and with a clock that is behind, too, it would give them
-- again: such an entry would be taken for one that is counted already. So ids go on after the newest; and entries that got lower
-- ones before anybody was here to see to that are moved there. What came after them follows, so that it stays after them; but only
-- of an incarnation that nobody has opened, for of that nobody has read.
local function group_exists()
  if redis.call('EXISTS', KEYS[2]) == 0 then return false end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
    if group[2] == ARGV[2] then return true end
  end
  return false
end
local function last_id()
  local info = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end
local function before(one, other)
  local ms, sequence = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_sequence = string.match(other, '^(%d+)-(%d+)$')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms < other_ms or (ms == other_ms and tonumber(sequence) < tonumber(other_sequence))
end
local function incarnation_of(fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'i' and string.match(fields[i + 1], '^%d+%-%d+$') then return fields[i + 1] end
  end
  return '0-0'
end
local function number_of(incarnation)
  return tonumber(string.match(incarnation, '^(%d+)-'))
end
local made, moved, current = 0, 0, incarnation(KEYS[3])
local unopened = redis.call('HGET', KEYS[3], 'opened') ~= current
local function later(one, than) -- of two incarnations; '0-0': none is known
  return than ~= '0-0' and one ~= than and (one == current or number_of(one) >= number_of(than))
end
local function unseen(id, of) -- something has come beyond this id, but in an incarnation before that of the entry
  for i = 6, #ARGV, 2 do
    if not before(ARGV[i], id) and (i == 6 or later(of, ARGV[i + 1])) then return later(of, ARGV[i + 1]) end
  end
  return false
end

if not group_exists() then
  local fresh = redis.call('EXISTS', KEYS[2]) == 0
  if fresh and ARGV[4] == '' then
    return redis.error_reply('NOGROUP')
  end
  made = 1
  redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[2], ARGV[3], 'MKSTREAM')
  if fresh then
    redis.call('HSET', KEYS[3], 'accepted', ARGV[4])
  end
end
if before(last_id(), ARGV[5]) then
  redis.call('XSETID', KEYS[2], ARGV[5])
end
go_on_after(KEYS[2], last_id())
local last, first = last_id(), nil -- of what is there; of what is moved
redis.call('HSET', KEYS[3], 'incarnation', current, 'opened', current)
local function move_where(holds, from, to)
  repeat
    local page = redis.call('XRANGE', KEYS[2], from, to, 'COUNT', 100)
    for _, entry in ipairs(page) do
      from = '(' .. entry[1]
      if holds(entry[1], incarnation_of(entry[2])) then
        first = first or entry[1]
        move(entry[1], entry[2], current)
        moved = moved + 1
      end
    end
  until #page == 0
end
for i = 6, #ARGV, 2 do -- at most those of one table are many: the others stand far behind
  if ARGV[i + 1] ~= current and ARGV[i + 1] ~= '0-0' then move_where(unseen, '-', ARGV[i]) end
end
if first and unopened then
  move_where(function(_, of) return of == current end, first, last)
end
return {made, current, moved}
